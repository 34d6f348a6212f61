"""8-bit weights: two's complement by hand, least squares against a scan, and an original that is left alone."""

import copy

import pytest
import torch
from conftest import same_state, small_classifier, state_of
from torch import nn

from datafree.analysis.quantisation import QuantisedModel, fit_step, flip_changes, squared_error, to_integers


def test_a_flip_changes_an_integer_by_what_twos_complement_says():
    by_hand = {(0, 7): -128, (5, 1): 7, (127, 7): -1, (-1, 7): 127, (-128, 3): -120, (-127, 0): -128, (-3, 2): -7}
    for (before, bit), after in by_hand.items():
        assert flip_changes(torch.tensor([before], dtype=torch.int8))[0, bit] == after - before
    every = torch.arange(-128, 128)
    for bit in range(8):
        flipped = ((every & 255) ^ (1 << bit)).numpy().astype("uint8").astype("int8")
        assert (flip_changes(every.to(torch.int8))[:, bit] == torch.from_numpy(flipped) - every).all()


@pytest.mark.parametrize("draw", [torch.randn, torch.rand, lambda n: torch.randn(n) ** 3])
def test_no_step_of_a_fine_scan_fits_the_weights_noticeably_better(draw):
    weight = draw(300)
    step = fit_step(weight)
    found, largest = squared_error(weight, step), weight.abs().max().item() / 127  # a usual choice of the step
    scan = torch.cat([torch.linspace(0.2, 1.2, 2000) * largest, torch.linspace(0.99, 1.01, 500) * step])
    assert found <= 1.005 * min(squared_error(weight, s) for s in scan.tolist())
    assert found < squared_error(weight, largest)


def test_for_its_integers_the_step_is_the_least_squares_one():
    weight = torch.randn(500).double()
    step = fit_step(weight)
    q = to_integers(weight, step)
    assert step == pytest.approx(((weight * q).sum() / (q * q).sum()).item(), rel=1e-12) and q.abs().max() <= 127


def test_the_weight_is_a_multiple_of_integers_and_the_original_is_untouched():
    model = small_classifier(0)
    before = state_of(model)
    quantised = QuantisedModel(model)
    quantised.layers[0].flip(3, 7)
    assert same_state(before, state_of(model)) and all(p.requires_grad for p in model.parameters())
    after = state_of(quantised.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (
        changed
        == {f"{layer.name}.weight" for layer in quantised.layers}
        == {"conv1.weight", "conv2.weight", "fc.weight"}
    )
    for layer in quantised.layers:
        assert layer.integers.dtype == torch.int8 and torch.equal(layer.module.weight, layer.step * layer.integers)
    for layer in quantised.layers[1:]:
        assert (layer.module.weight - before[f"{layer.name}.weight"]).abs().max() < 1.1 * layer.step


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_flipping_a_bit_changes_exactly_that_weight_of_that_layer_and_twice_undoes_it(memory):
    quantised = QuantisedModel(small_classifier(0).to(memory_format=memory))
    before, conv2 = copy.deepcopy(quantised), quantised.layers[1]
    old = conv2.integers.flatten()[37].item()
    conv2.flip(37, 6)
    for layer, other in zip(quantised.layers, before.layers, strict=True):
        for now, then in ((layer.integers, other.integers), (layer.module.weight, other.module.weight)):
            assert (now != then).flatten().nonzero().flatten().tolist() == ([37] if layer is conv2 else [])
    assert conv2.integers.flatten()[37].item() - old in (64, -64)
    conv2.flip(37, 6)
    assert same_state(state_of(quantised.model), state_of(before.model))


def test_a_layer_of_zeros_stays_one_and_does_not_divide_by_zero():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[1].weight)
    quantised = QuantisedModel(model)
    quantised.layers[0].flip(0, 7)
    assert quantised.layers[0].step == 0 and torch.equal(quantised.layers[0].module.weight, torch.zeros(3, 4))
    assert quantised(torch.randn(2, 4)).isfinite().all()
