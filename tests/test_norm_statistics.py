"""What is heard of a teacher's BatchNorm layers, its blend over rounds, and what the hooks leave alone."""

import math

import pytest
import torch
from conftest import CLASSES, SIZE, same_state, small_teacher, state_of
from test_batchnorm import moments_by_hand
from torch import nn

from datafree.models.classifier import Classifier
from datafree.models.norm_statistics import NormStatistics


def hear(statistics, teacher, x):
    with statistics.listening():
        return teacher(x)


def inputs_of_bn(teacher, x):
    """What bn1 and bn2 are given, by the layers themselves."""
    network = teacher.network
    first = network.conv1(teacher.normalise(x))
    return [first, network.conv2(network.bn1(first).relu())]


def bn_moments(teacher, x):
    """Means, then variances, in fp64."""
    moments = [moments_by_hand(inputs) for inputs in inputs_of_bn(teacher, x)]
    return [mean for mean, _ in moments] + [variance for _, variance in moments]


def loss_of(teacher, values):
    """L_bn of means, then variances."""
    layers = teacher.network.bn1, teacher.network.bn2
    kept = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
    return sum(
        math.sqrt(sum((k - v) ** 2 for k, v in zip(a.tolist(), b.tolist(), strict=True)))
        for a, b in zip(kept, values, strict=True)
    )


def images(seed):
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def on_pixels(network):
    """A classifier that leaves pixels as they are."""
    return Classifier(network, "own", CLASSES, SIZE, (0.0,) * 3, (1.0,) * 3).eval()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_first_round_is_of_the_batch_alone_later_ones_blend_in_the_average_of_the_rounds_last_iterates(momentum):
    teacher, average = small_teacher(), None
    statistics = NormStatistics(teacher, momentum)
    for number in range(3):  # rounds of two iterates
        for iterate in range(2):
            x = images(10 * number + iterate)
            hear(statistics, teacher, x)
            batch = bn_moments(teacher, x)
            blend = batch
            if average is not None:
                blend = [(1 - momentum) * now + momentum * past for now, past in zip(batch, average, strict=True)]
            assert statistics.loss().item() == pytest.approx(loss_of(teacher, blend), rel=1e-5)
        statistics.update_average()
        average = blend
        torch.testing.assert_close(statistics.average.double(), torch.cat(average), rtol=1e-5, atol=1e-6)
        assert not statistics.average.requires_grad


def test_gradient_of_the_blended_loss_reaches_the_images():
    teacher, (x, y) = small_teacher(), (images(1).requires_grad_() for _ in range(2))
    statistics = NormStatistics(teacher, momentum=0.9)
    hear(statistics, teacher, images(0))
    statistics.loss()
    statistics.update_average()
    hear(statistics, teacher, x)
    statistics.loss().backward()

    network, total = teacher.network, 0.0
    bn1_mean, bn2_mean, bn1_variance, bn2_variance = statistics.average.split((4, 8, 4, 8))
    past = (network.bn1, bn1_mean, bn1_variance), (network.bn2, bn2_mean, bn2_variance)
    for (layer, past_mean, past_variance), values in zip(past, inputs_of_bn(teacher, y), strict=True):
        mean = values.mean((0, 2, 3))
        variance = ((values - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
        total = total + (layer.running_mean - (0.1 * mean + 0.9 * past_mean)).square().sum().sqrt()
        total = total + (layer.running_var - (0.1 * variance + 0.9 * past_variance)).square().sum().sqrt()
    total.backward()
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-6)


def test_only_what_is_forwarded_while_listening_is_heard_and_listening_ends_when_a_pass_fails():
    teacher = small_teacher()
    statistics = NormStatistics(teacher, momentum=0.9)
    with pytest.raises(RuntimeError):
        hear(statistics, teacher, torch.rand(4, 2, SIZE, SIZE))
    hear(statistics, teacher, images(0))
    before = statistics.loss()
    teacher(images(1))
    assert torch.equal(statistics.loss(), before)


def test_hooks_change_neither_the_teachers_output_nor_its_state_and_come_off():
    teacher = small_teacher()
    plain, state = teacher(images(0)), state_of(teacher)
    statistics = NormStatistics(teacher, momentum=0.9)
    assert torch.equal(hear(statistics, teacher, images(0)), plain)
    assert torch.equal(teacher(images(0)), plain) and same_state(state_of(teacher), state)
    assert sum(len(module._forward_pre_hooks) for module in teacher.modules()) == 2
    statistics.remove()
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_two_listeners_on_one_teacher_do_not_disturb_each_other():
    teacher = small_teacher()
    first, second = NormStatistics(teacher, 0.0), NormStatistics(teacher, 0.0)
    hear(first, teacher, images(0))
    expected = first.loss()
    hear(second, teacher, images(1))
    second.remove()
    assert torch.equal(first.loss(), expected) and not torch.equal(second.loss(), expected)


def test_a_teacher_without_running_statistics_has_no_layers_and_one_zero_that_is_made_once():
    forgetful = on_pixels(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)))
    for teacher in (small_teacher(batch_norm=False), forgetful):
        statistics = NormStatistics(teacher, momentum=0.9)
        losses = []
        for seed in range(3):
            hear(statistics, teacher, images(seed))
            losses.append(statistics.loss())
            statistics.update_average()
        assert statistics.layers == [] and statistics.average is None and losses[0].item() == 0
        assert losses[0] is losses[1] is losses[2]  # a new tensor an iteration is a copy to the device an iteration


class Twice(nn.Module):
    """A one-dimensional BatchNorm, called by keyword, and one that the forward never calls."""

    def __init__(self):
        super().__init__()
        self.aside, self.linear, self.bn = nn.BatchNorm2d(7), nn.Linear(3 * SIZE**2, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(input=self.linear(x.flatten(1)))


def test_a_bn_layer_that_is_never_called_has_no_say_and_one_called_by_keyword_or_of_one_dimension_has():
    network, x = Twice(), images(0)
    teacher = on_pixels(network)
    statistics = NormStatistics(teacher, momentum=0.9)
    mean, variance = moments_by_hand(network.linear(x.flatten(1)).detach())
    by_hand = mean.norm() + (variance - 1).norm()  # a new layer remembers mean 0, variance 1
    for _ in range(2):
        hear(statistics, teacher, x)
        assert statistics.loss().item() == pytest.approx(by_hand.item(), rel=1e-5)
        statistics.update_average()


@pytest.mark.parametrize("rounds", [0, 2])
def test_the_average_survives_a_state_dict_on_disk(rounds, tmp_path):
    teacher = small_teacher()
    statistics, other = NormStatistics(teacher, momentum=0.9), NormStatistics(teacher, momentum=0.9)
    for listener, seeds in ((statistics, range(rounds)), (other, (7,))):  # other's is one that loading must replace
        for seed in seeds:
            hear(listener, teacher, images(seed))
            listener.loss()
            listener.update_average()
    torch.save(statistics.state_dict(), tmp_path / "state.pth")
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    losses = []
    for listener in (statistics, other):
        hear(listener, teacher, images(8))
        losses.append(listener.loss())
    assert torch.equal(*losses)
