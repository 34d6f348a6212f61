"""The bit search: against a search written out by hand, never down the gradient, and worse for a model than chance."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, same_state, small_classifier, state_of
from torch import nn

import registry
from datafree.analysis.bit_flip import best_bit, bit_flip_attack, random_flips
from datafree.analysis.quantisation import QuantisedModel
from datafree.data.digits import load_digits
from datafree.models.loading import load_classifier

PLACE = ["layer", "index", "bit"]


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


@pytest.mark.parametrize("k_top", [1, 3, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_flips_what_a_search_by_hand_flips(seed, k_top):
    torch.manual_seed(seed)
    model, x, labels = two_layers(), torch.randn(16, 4), torch.randint(3, (16,))
    rows = bit_flip_attack(QuantisedModel(model), x, labels, no_evaluation, flips=4, k_top=k_top)
    expected, final_loss = by_hand(model, x, labels, 4, k_top)
    assert rows[PLACE].iloc[1:].to_numpy().tolist() == [list(place) for place in expected]
    assert rows.loss.iloc[-1] == pytest.approx(final_loss, rel=1e-5)
    assert rows.loss[0] == pytest.approx(F.cross_entropy(QuantisedModel(model)(x), labels).item(), rel=1e-5)


def test_no_bit_is_picked_that_lowers_the_loss_to_first_order_or_was_flipped_before():
    torch.manual_seed(3)
    model, x, labels = two_layers(), torch.randn(16, 4), torch.randint(3, (16,))
    rows = bit_flip_attack(QuantisedModel(model), x, labels, no_evaluation, flips=40, k_top=2)
    places = rows[PLACE].iloc[1:].to_numpy().tolist()
    assert len({tuple(place) for place in places}) == len(places) > 10
    layer, steepest = QuantisedModel(model).layers[0], torch.zeros(3, 4)
    steepest[1, 2] = 1.0  # the one weight that matters: its bits run out
    taken = set()
    while (found := best_bit(layer, steepest, 1, taken)) is not None:
        before = layer.module.weight[1, 2].item()
        layer.flip(*found)
        assert layer.module.weight[1, 2] > before and found not in taken
        layer.flip(*found)
        taken.add(found)
    assert 0 < len(taken) <= 8


def test_a_search_with_nothing_to_gain_ends():
    model = two_layers()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[2].weight)
    rows = bit_flip_attack(QuantisedModel(model), torch.randn(3, 4), torch.zeros(3).long(), no_evaluation, 5)
    assert rows.flips.tolist() == [0]


def test_only_the_flips_of_the_rows_remain_and_evaluation_sees_each():
    model = QuantisedModel(small_classifier(2))
    redone, x, labels = copy.deepcopy(model), torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    rows = bit_flip_attack(model, x, labels, lambda attacked: attacked(x).sum().item(), flips=3)
    layers = {layer.name: layer for layer in redone.layers}
    for row in rows.itertuples(index=False):
        if row.flips:
            layers[row.layer].flip(row.index, row.bit)
        assert redone(x).sum().item() == row.accuracy
    assert same_state(state_of(model.model), state_of(redone.model)) and len(rows) == 4


def test_random_flips_are_all_different_everywhere_and_repeatable():
    total = (12 + 9) * 8

    def places(count, seed):
        rows = random_flips(QuantisedModel(two_layers()), torch.Generator().manual_seed(seed), no_evaluation, count)
        return [tuple(place) for place in rows[PLACE].iloc[1:].to_numpy().tolist()]

    sizes = {"0": 12, "2": 9}
    assert set(places(total, 0)) == {(name, i, b) for name, n in sizes.items() for i in range(n) for b in range(8)}
    assert places(9, 1) == places(9, 1) != places(9, 2) and len(set(places(9, 1))) == 9


@pytest.mark.slow
def test_a_few_flips_cost_a_trained_classifier_more_than_random_ones():
    teacher = registry.MODELS["resnet20"](10)
    load_classifier(teacher, ROOT / "checkpoints/pretrained/digits_resnet20.pth", "teacher checkpoint")
    images = load_digits(ROOT / "data", False, False)
    x = images.images.float() / 255 * 2 - 1

    @torch.no_grad()
    def evaluate(model):
        return 100 * (model(x[16:80]).argmax(1) == images.labels[16:80]).double().mean().item()

    model = QuantisedModel(teacher)
    random = random_flips(copy.deepcopy(model), torch.Generator().manual_seed(0), evaluate, 5)
    searched = bit_flip_attack(model, x[:16], images.labels[:16], evaluate, flips=5)
    before, after = searched.iloc[0], searched.iloc[-1]
    assert len(searched) == len(random) == 6 and before.accuracy == random.accuracy[0] > 95
    assert after.accuracy < before.accuracy - 5 and random.accuracy.iloc[-1] > before.accuracy - 2
    assert after.loss > 10 * before.loss
