"""The bit search: against a search written out by hand, never down the gradient, and worse for a model than chance."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, same_state, small_classifier, state_of
from torch import nn

import registry
from datafree import checkpoint
from datafree.analysis import bit_flip
from datafree.analysis.bit_flip import best_bit, bit_flip_attack, gains, random_flips
from datafree.analysis.quantisation import QuantisedModel
from datafree.data.digits import load_digits


def no_evaluation(_):
    return 0.0


def two_layers() -> nn.Module:
    """Three classes: with two, gradients come in pairs of one size, and k_top of them are not defined."""
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))


def by_hand(model: nn.Module, x, labels, flips, k_top):
    """The search with Python's own integers, a bit at a time: [(layer, index, bit)], the final loss."""
    quantised = QuantisedModel(model)
    names = [layer.name for layer in quantised.layers]
    steps = {layer.name: layer.step for layer in quantised.layers}
    integers = {layer.name: layer.integers.flatten().tolist() for layer in quantised.layers}
    net, found = quantised.model, []
    weights = {name: net.get_submodule(name).weight for name in names}

    def loss():
        with torch.no_grad():
            for name in names:
                weights[name].copy_(steps[name] * torch.tensor(integers[name]).view_as(weights[name]))
        return F.cross_entropy(net(x), labels)

    def flipped(value, bit):
        pattern = (value & 255) ^ (1 << bit)
        return pattern - 256 if pattern > 127 else pattern

    for _ in range(flips):
        gradients = dict(zip(names, torch.autograd.grad(loss(), list(weights.values())), strict=True))
        best = None
        for name in names:
            slope = gradients[name].flatten().tolist()
            candidate = None
            for index in sorted(range(len(slope)), key=lambda i, s=slope: -abs(s[i]))[:k_top]:
                for bit in range(8):
                    old = integers[name][index]
                    gain = slope[index] * steps[name] * (flipped(old, bit) - old)
                    if gain > 0 and (name, index, bit) not in found and (candidate is None or gain > candidate[0]):
                        candidate = gain, index, bit
            if candidate is None:
                continue
            _, index, bit = candidate
            old = integers[name][index]
            integers[name][index] = flipped(old, bit)
            after = loss().item()
            integers[name][index] = old
            if best is None or after > best[0]:
                best = after, name, index, bit
        _, name, index, bit = best
        integers[name][index] = flipped(integers[name][index], bit)
        found.append((name, index, bit))
    return found, loss().item()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k_top", [1, 3, 100])
def test_the_search_flips_what_a_search_by_hand_flips(seed, k_top):
    torch.manual_seed(seed)
    model, x, labels = two_layers(), torch.randn(16, 4), torch.randint(3, (16,))
    history = bit_flip_attack(QuantisedModel(model), x, labels, no_evaluation, flips=4, k_top=k_top)
    expected, final_loss = by_hand(model, x, labels, 4, k_top)
    assert [(flip.layer, flip.index, flip.bit) for flip in history] == expected
    assert history[-1].loss_after == pytest.approx(final_loss, rel=1e-5)
    for flip, following in pairwise(history):
        assert following.loss_before == pytest.approx(flip.loss_after, rel=1e-5)


def test_gains_are_slope_times_step_times_change_of_the_steepest_weights():
    layer = QuantisedModel(two_layers()).layers[0]
    gradient = torch.arange(12.0).view(3, 4) - 4.5
    indices, gain = gains(layer, gradient, k_top=3)
    assert indices.tolist() == [11, 10, 0] or indices.tolist() == [11, 10, 9]  # 6.5, 5.5, then |4.5| twice
    for row, index in enumerate(indices.tolist()):
        value = layer.integers.flatten()[index].item()
        for bit in range(8):
            pattern = (value & 255) ^ (1 << bit)
            change = (pattern - 256 if pattern > 127 else pattern) - value
            assert gain[row, bit].item() == pytest.approx(gradient.flatten()[index].item() * layer.step * change)


def test_no_bit_is_picked_whose_flip_lowers_the_first_order_loss(monkeypatch):
    model = QuantisedModel(small_classifier(1))
    x, labels, seen = torch.randn(8, 3, 8, 8), torch.randint(5, (8,)), []

    def spy(layer, gradient, k_top, taken):
        found = best_bit(layer, gradient, k_top, taken)
        if found:
            before = layer.module.weight.detach().clone()
            layer.flip(*found)
            seen.append(((layer.module.weight.detach() - before) * gradient).sum().item())
            layer.flip(*found)
        return found

    monkeypatch.setattr(bit_flip, "best_bit", spy)
    bit_flip_attack(model, x, labels, no_evaluation, flips=6, k_top=4)
    assert len(seen) >= 6 and min(seen) > 0


def test_no_bit_is_flipped_back():
    torch.manual_seed(3)
    model, x, labels = two_layers(), torch.randn(16, 4), torch.randint(3, (16,))
    history = bit_flip_attack(QuantisedModel(model), x, labels, no_evaluation, flips=40, k_top=2)
    places = [(flip.layer, flip.index, flip.bit) for flip in history]
    assert len(set(places)) == len(places) > 10
    layer = QuantisedModel(model).layers[0]
    steepest = torch.zeros(3, 4)
    steepest[1, 2] = 1.0  # the one weight that matters: its bits run out
    free = [best_bit(layer, steepest, 1, {(6, bit) for bit in range(used)}) for used in range(9)]
    assert free[8] is None and all(found is None or found[1] >= used for used, found in enumerate(free))


def test_a_search_with_nothing_to_gain_ends():
    model = two_layers()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.zero_()
    assert bit_flip_attack(QuantisedModel(model), torch.randn(3, 4), torch.zeros(3).long(), no_evaluation, 5) == []


def test_only_the_flips_of_the_history_remain_and_evaluation_sees_each():
    model = QuantisedModel(small_classifier(2))
    redone, seen = model.copy(), []
    x, labels = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))

    def evaluate(attacked):
        seen.append(attacked(x).sum().item())
        return float(len(seen))

    history = bit_flip_attack(model, x, labels, evaluate, flips=3)
    layers = {layer.name: layer for layer in redone.layers}
    for flip, answer in zip(history, seen, strict=True):
        layers[flip.layer].flip(flip.index, flip.bit)
        assert redone(x).sum().item() == answer
    assert same_state(state_of(model.model), state_of(redone.model))
    assert [flip.accuracy for flip in history] == [1.0, 2.0, 3.0]


def test_random_flips_are_all_different_everywhere_and_repeatable():
    model = two_layers()
    total = (12 + 9) * 8

    def places(count, seed):
        history = random_flips(QuantisedModel(model), torch.Generator().manual_seed(seed), no_evaluation, count)
        return [(flip.layer, flip.index, flip.bit) for flip in history]

    assert len(set(places(total, 0))) == total
    assert places(9, 1) == places(9, 1) != places(9, 2) and len(set(places(9, 1))) == 9
    assert {layer for layer, _, _ in places(40, 0)} == {"0", "2"}


@pytest.fixture(scope="module")
def digits_teacher():
    """The committed one, with 32 normalised test images to attack with and 64 others to be judged on."""
    teacher = registry.resnet20(10)
    checkpoint.load_classifier(teacher, ROOT / "checkpoints/pretrained/digits_resnet20.pth", "teacher checkpoint")
    images = load_digits(ROOT / "data", False, False)
    x = images.images.float() / 255 * 2 - 1
    return teacher, (x[:32], images.labels[:32]), (x[32:96], images.labels[32:96])


def test_a_few_flips_cost_a_trained_classifier_more_than_random_ones(digits_teacher):
    teacher, (x, labels), (other_x, truth) = digits_teacher

    @torch.no_grad()
    def evaluate(model):
        return 100 * (model(other_x).argmax(1) == truth).double().mean().item()

    model = QuantisedModel(teacher)
    before = evaluate(model)
    random = random_flips(model.copy(), torch.Generator().manual_seed(0), evaluate, 5)
    searched = bit_flip_attack(model, x, labels, evaluate, flips=5)
    assert len(searched) == len(random) == 5 and before > 95
    assert searched[-1].accuracy < before - 5 and random[-1].accuracy > before - 2
    assert searched[-1].loss_after > 10 * searched[0].loss_before
