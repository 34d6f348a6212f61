"""L_bn's statistics against sums written out, their blend over rounds, and what the hooks leave alone."""

import math

import pytest
import torch
from conftest import SIZE, same_state, small_teacher, state_of
from datafree.bn_statistics import BNStatistics, channel_moments
from torch import nn

SHAPES = [(4, 3, 5, 7), (6, 3, 9), (8, 3), (1, 3, 2, 2)]


def moments_by_hand(x):
    """Loops over channels in Python's float64."""
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].double().flatten().tolist()
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_the_mean_and_the_biased_variance_of_each_channel(shape):
    x = torch.randn(shape) * 3 + 1
    for value, by_hand in zip(channel_moments(x), moments_by_hand(x), strict=True):
        assert value.dtype == torch.float32 and value.shape == (3,)
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_variance_is_divided_by_n_not_by_n_minus_one():
    _, variance = channel_moments(torch.tensor([[0.0], [2.0]]))
    assert variance.item() == 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_the_moments_pass_gradcheck_in_fp64(shape):
    assert torch.autograd.gradcheck(channel_moments, torch.randn(shape, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_autograd_through_the_written_out_moments(shape):
    x = (torch.randn(shape) * 3 + 1).requires_grad_()
    weight_mean, weight_variance = torch.randn(3), torch.randn(3)
    mean, variance = channel_moments(x)
    ((mean * weight_mean).sum() + (variance * weight_variance).sum()).backward()
    y = x.detach().double().requires_grad_()
    dims = [d for d in range(y.ndim) if d != 1]
    mu = y.mean(dims, keepdim=True)
    by_hand = ((y - mu) ** 2).mean(dims)
    ((mu.flatten() * weight_mean).sum() + (by_hand * weight_variance).sum()).backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-6)


def test_a_moment_that_nobody_uses_adds_nothing_to_the_gradient():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(channel_moments(x)[0].sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 100))


def test_bf16_input_gives_fp32_moments_of_the_same_values_and_a_bf16_gradient():
    x = (torch.randn(16, 3, 8, 8) + 4).bfloat16().requires_grad_()
    mean, variance = channel_moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    for value, by_hand in zip((mean, variance), moments_by_hand(x), strict=True):
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-5, atol=0)  # bf16 sums would be off by 1e-3
    (mean.sum() + variance.sum()).backward()
    y = x.detach().double().requires_grad_()
    (y.mean((0, 2, 3)).sum() + y.var((0, 2, 3), unbiased=False).sum()).backward()
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-2, atol=1e-6)


def test_memory_order_does_not_change_moments_or_gradients():
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        x = torch.randn(4, 3, 6, 6).contiguous(memory_format=order).requires_grad_()
        mean, variance = channel_moments(x)
        (mean.square().sum() + variance.square().sum()).backward()
        results.append((mean.detach(), variance.detach(), x.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_variance_survives_a_mean_far_from_zero():
    x = torch.randn(8, 3, 16, 16) + 1000
    torch.testing.assert_close(channel_moments(x)[1].double(), moments_by_hand(x)[1], rtol=1e-3, atol=0)


# Listening to a teacher


def hear(statistics, teacher, x):
    with statistics.listening():
        return teacher(x)


def inputs_of_bn(teacher, x):
    """What bn1 and bn2 are given, by the layers themselves."""
    first = teacher.conv1(x)
    return [first, teacher.conv2(teacher.bn1(first).relu())]


def bn_moments(teacher, x):
    """Means, then variances, in fp64."""
    moments = [moments_by_hand(inputs) for inputs in inputs_of_bn(teacher, x)]
    return [mean for mean, _ in moments] + [variance for _, variance in moments]


def loss_of(teacher, values):
    """L_bn of means, then variances."""
    kept = [teacher.bn1.running_mean, teacher.bn2.running_mean, teacher.bn1.running_var, teacher.bn2.running_var]
    return sum(
        math.sqrt(sum((k - v) ** 2 for k, v in zip(a.tolist(), b.tolist(), strict=True)))
        for a, b in zip(kept, values, strict=True)
    )


def images(seed):
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_without_an_average_the_loss_is_of_the_batch_alone():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    hear(statistics, teacher, images(0))
    assert statistics.average is None
    assert statistics.loss().item() == pytest.approx(loss_of(teacher, bn_moments(teacher, images(0))), rel=1e-5)


def test_later_rounds_blend_the_batch_with_the_average_of_the_rounds_last_iterates():
    teacher, momentum = small_teacher(), 0.9
    statistics = BNStatistics(teacher, momentum)
    average = None
    for number in range(3):  # rounds of two iterates
        for iterate in range(2):
            x = images(10 * number + iterate)
            hear(statistics, teacher, x)
            batch = bn_moments(teacher, x)
            blend = (
                batch
                if average is None
                else [(1 - momentum) * now + momentum * past for now, past in zip(batch, average, strict=True)]
            )
            assert statistics.loss().item() == pytest.approx(loss_of(teacher, blend), rel=1e-5)
        statistics.update_average()
        average = blend
        for kept, by_hand in zip(statistics.average, average, strict=True):
            torch.testing.assert_close(kept.double(), by_hand, rtol=1e-5, atol=1e-6)
            assert not kept.requires_grad


def test_momentum_zero_compares_each_batch_alone():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.0)
    for seed in range(2):
        hear(statistics, teacher, images(seed))
        assert statistics.loss().item() == pytest.approx(loss_of(teacher, bn_moments(teacher, images(seed))), rel=1e-5)
        statistics.update_average()


def test_gradient_of_the_blended_loss_reaches_the_images():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    hear(statistics, teacher, images(0))
    statistics.update_average()
    x = images(1).requires_grad_()
    hear(statistics, teacher, x)
    statistics.loss().backward()

    y = images(1).requires_grad_()
    total = 0.0
    layers = (teacher.bn1, teacher.bn2)
    for index, (layer, values) in enumerate(zip(layers, inputs_of_bn(teacher, y), strict=True)):
        mean = values.mean((0, 2, 3))
        variance = ((values - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
        past_mean, past_variance = statistics.average[index], statistics.average[index + 2]
        total = total + (layer.running_mean - (0.1 * mean + 0.9 * past_mean)).square().sum().sqrt()
        total = total + (layer.running_var - (0.1 * variance + 0.9 * past_variance)).square().sum().sqrt()
    total.backward()
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-6)


def test_only_what_is_forwarded_while_listening_is_heard():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    hear(statistics, teacher, images(0))
    before = statistics.loss()
    teacher(images(1))
    assert torch.equal(statistics.loss(), before)


def test_listening_ends_when_the_forward_pass_fails():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    with pytest.raises(RuntimeError):
        hear(statistics, teacher, torch.rand(4, 2, SIZE, SIZE))
    hear(statistics, teacher, images(0))
    before = statistics.loss()
    teacher(images(1))
    assert torch.equal(statistics.loss(), before)


def test_hooks_change_neither_the_teachers_output_nor_its_state():
    teacher = small_teacher()
    plain, state = teacher(images(0)), state_of(teacher)
    statistics = BNStatistics(teacher, momentum=0.9)
    assert torch.equal(hear(statistics, teacher, images(0)), plain)
    statistics.update_average()
    assert torch.equal(teacher(images(0)), plain) and same_state(state_of(teacher), state)


def test_remove_takes_every_hook_off():
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    assert sum(len(module._forward_pre_hooks) for module in teacher.modules()) == 2
    statistics.remove()
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_two_listeners_on_one_teacher_do_not_disturb_each_other():
    teacher = small_teacher()
    first, second = BNStatistics(teacher, 0.0), BNStatistics(teacher, 0.0)
    hear(first, teacher, images(0))
    expected = first.loss()
    hear(second, teacher, images(1))
    second.remove()
    assert torch.equal(first.loss(), expected) and not torch.equal(second.loss(), expected)


def test_a_teacher_without_running_statistics_has_no_layers_and_no_loss():
    for teacher in (small_teacher(batch_norm=False), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))):
        statistics = BNStatistics(teacher, momentum=0.9)
        hear(statistics, teacher, images(0))
        assert statistics.layers == [] and statistics.loss().item() == 0
        statistics.update_average()


def test_one_dimensional_batch_norm_is_heard():
    teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    statistics = BNStatistics(teacher, momentum=0.0)
    x = torch.randn(6, 4)
    hear(statistics, teacher, x)
    mean, variance = moments_by_hand(teacher[0](x).detach())
    by_hand = mean.norm() + (variance - 1).norm()  # a new layer remembers mean 0, variance 1
    assert statistics.loss().item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("rounds", [0, 2])
def test_the_average_survives_a_state_dict_on_disk(rounds, tmp_path):
    teacher = small_teacher()
    statistics = BNStatistics(teacher, momentum=0.9)
    for seed in range(rounds):
        hear(statistics, teacher, images(seed))
        statistics.update_average()
    torch.save(statistics.state_dict(), tmp_path / "state.pth")
    other = BNStatistics(teacher, momentum=0.9)
    hear(other, teacher, images(7))
    other.update_average()  # an average that loading must replace
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    losses = []
    for listener in (statistics, other):
        hear(listener, teacher, images(8))
        losses.append(listener.loss())
    assert torch.equal(*losses)


def test_a_bn_layer_that_the_forward_never_calls_has_no_say():
    teacher = small_teacher()
    plain = BNStatistics(teacher, 0.9)
    x = torch.rand(3, 3, SIZE, SIZE)
    with plain.listening():
        teacher(x)
    expected = plain.loss()
    teacher.aside = nn.BatchNorm2d(7).eval()
    statistics = BNStatistics(teacher, 0.9)
    for _ in range(2):
        with statistics.listening():
            teacher(x)
        assert statistics.loss().item() == pytest.approx(expected.item(), rel=1e-5)
        statistics.update_average()
