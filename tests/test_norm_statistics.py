"""What is heard of a teacher's BatchNorm layers, its blend over rounds, and what the hooks leave alone."""

import pytest
import torch
from conftest import CLASSES, MEAN, SIZE, STD, same_state, small_network, small_teacher, state_of
from test_aeahl_rg import bn_inputs, bn_norms, moments
from test_batchnorm import moments_by_hand
from torch import nn
from torch.utils.checkpoint import checkpoint

from datafree.models.classifier import Classifier
from datafree.models.norm_statistics import NormStatistics, SpatialMeans


def hear(statistics, teacher, x):
    with statistics.listening():
        return teacher(x)


def images(seed):
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class AnyLogits(nn.Module):
    """Of a network that gives something else."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).flatten(1)[:, :1].expand(-1, CLASSES)


def on_pixels(network):
    """A classifier that leaves pixels as they are."""
    return Classifier(AnyLogits(network), "own", CLASSES, SIZE, (0.0,) * 3, (1.0,) * 3).eval()


class Checkpointed(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return checkpoint(self.network, x, use_reentrant=False)


@pytest.mark.parametrize("kind", [NormStatistics, SpatialMeans])
def test_a_teacher_that_recomputes_its_layers_on_the_way_back_has_the_same_gradients(kind):
    network, found = small_network(1), []
    for each in (network, Checkpointed(network)):
        teacher, x = Classifier(each, "own", CLASSES, SIZE, MEAN, STD).eval(), images(0).requires_grad_()
        teacher.recomputes = each is not network  # as the look ahead finds
        listener = kind(teacher, 0.0) if kind is NormStatistics else kind(teacher)
        answer = hear(listener, teacher, x)
        loss = listener.loss() if kind is NormStatistics else listener.features().square().sum()
        (loss + answer.square().sum()).backward()
        listener.remove()
        found.append(x.grad)
    assert torch.equal(*found)


def test_an_input_that_is_changed_after_it_was_heard_is_no_silent_fault():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3, affine=False)

        def forward(self, x):
            x = x * 1
            return self.norm(x).detach() + x.zero_()

    teacher, x = on_pixels(InPlace()), images(0).requires_grad_()
    teacher.recomputes = True
    statistics = NormStatistics(teacher, 0.0)
    hear(statistics, teacher, x)
    with pytest.raises(RuntimeError, match="changed in place"):
        statistics.loss().backward()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_first_round_is_of_the_batch_alone_later_ones_blend_in_the_average_of_the_rounds_last_iterates(momentum):
    teacher, average = small_teacher(), None
    statistics = NormStatistics(teacher, momentum)
    for number in range(6):  # three rounds of two iterates
        hear(statistics, teacher, images(number))
        batch = moments(*bn_inputs(teacher, images(number))[:2])
        blend = batch if average is None else (1 - momentum) * batch + momentum * average
        torch.testing.assert_close(statistics.loss(), bn_norms(teacher, blend), rtol=1e-5, atol=0)
        if number % 2:
            statistics.update_average()
            average = blend
            torch.testing.assert_close(statistics.average, average, rtol=1e-5, atol=1e-6)


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


def test_spatial_means_are_those_of_each_norms_input_side_by_side_of_every_image_with_their_gradient():
    teacher, x = small_teacher(), images(0).requires_grad_()
    means = SpatialMeans(teacher)
    hear(means, teacher, x)
    teacher(images(1))
    y = images(0).requires_grad_()
    expected = torch.cat([each.mean((2, 3)) for each in bn_inputs(teacher, y)[:2]], dim=1)
    torch.testing.assert_close(means.features(), expected)
    towards = torch.randn(expected.shape)
    means.features().backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(x.grad, y.grad)
    with torch.autocast("cpu", torch.bfloat16):
        hear(means, teacher, images(0))
    assert means.heard and means.features().dtype == torch.float32
    means.remove()
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_of_layers_at_one_resolution_the_last_can_stand_for_all():
    conv = [nn.Conv2d(3, width, 3, stride, 1) for width, stride in ((3, 1), (3, 1), (3, 2))]
    norms = [nn.BatchNorm2d(3) for _ in conv]
    teacher, x = on_pixels(nn.Sequential(*(each for pair in zip(conv, norms, strict=True) for each in pair))), images(0)
    inputs = [conv[0](x)]
    for norm, layer in zip(norms, conv[1:], strict=False):
        inputs.append(layer(norm.eval()(inputs[-1])))
    for stages, counted in ((False, inputs), (True, inputs[1:])):
        means = SpatialMeans(teacher, stages)
        hear(means, teacher, x)
        torch.testing.assert_close(means.features(), torch.cat([each.mean((2, 3)) for each in counted], dim=1))


def test_the_mean_of_an_input_without_positions_is_the_input_itself():
    network, x = Partly(), images(0)
    teacher = on_pixels(network)
    means = SpatialMeans(teacher)
    hear(means, teacher, x)
    assert torch.equal(means.features(), network.linear(x.flatten(1)))


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


class Partly(nn.Module):
    """A one-dimensional BatchNorm, called by keyword, and one that the forward never calls."""

    def __init__(self):
        super().__init__()
        self.aside, self.linear, self.bn = nn.BatchNorm2d(7), nn.Linear(3 * SIZE**2, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(input=self.linear(x.flatten(1)))


def test_a_bn_layer_that_is_never_called_has_no_say_and_one_called_by_keyword_or_of_one_dimension_has():
    network, x = Partly(), images(0)
    teacher = on_pixels(network)
    statistics = NormStatistics(teacher, momentum=0.9)
    mean, variance = moments_by_hand(network.linear(x.flatten(1)).detach())
    by_hand = mean.norm() + (variance - 1).norm()  # a new layer remembers mean 0, variance 1
    for _ in range(2):
        hear(statistics, teacher, x)
        assert statistics.loss().item() == pytest.approx(by_hand.item(), rel=1e-5)
        statistics.update_average()
