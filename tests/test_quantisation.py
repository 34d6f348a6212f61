"""8-bit weights: two's complement by hand, least squares against a scan, and an original that is left alone."""

import pytest
import torch
from conftest import same_state, small_classifier, state_of
from torch import nn

from datafree.analysis.quantisation import (
    QuantisedModel,
    fit_step,
    flip_bits,
    flip_changes,
    read_bits,
    squared_error,
    to_integers,
)


@pytest.mark.parametrize(
    ("before", "bit", "after"),
    [
        (0, 0, 1),
        (0, 7, -128),  # 0000 0000 -> 1000 0000
        (1, 0, 0),
        (5, 1, 7),  # 0101 -> 0111
        (5, 2, 1),  # 0101 -> 0001
        (127, 7, -1),  # 0111 1111 -> 1111 1111
        (127, 6, 63),
        (-1, 0, -2),  # 1111 1111 -> 1111 1110
        (-1, 7, 127),
        (-128, 7, 0),
        (-128, 3, -120),
        (-127, 0, -128),  # 1000 0001 -> 1000 0000
        (-3, 2, -7),  # 1111 1101 -> 1111 1001
        (-3, 1, -1),
    ],
)
def test_a_flip_changes_an_integer_by_what_twos_complement_says(before, bit, after):
    one = torch.tensor([before], dtype=torch.int8)
    assert flip_bits(one, bit).item() == after and flip_changes(one)[0, bit].item() == after - before
    assert read_bits(one, bit).item() != read_bits(flip_bits(one, bit), bit).item()
    assert one.item() == before


def test_the_eight_bits_make_up_every_integer_and_flipping_twice_undoes_itself():
    every = torch.arange(-128, 128).to(torch.int8)
    text = [format(value & 255, "08b") for value in range(-128, 128)]
    for bit in range(8):
        assert read_bits(every, bit).tolist() == [digits[7 - bit] == "1" for digits in text]
        assert torch.equal(flip_bits(flip_bits(every, bit), bit), every)
        assert torch.equal(every.int() + flip_changes(every)[:, bit], flip_bits(every, bit).int())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("draw", [torch.randn, torch.rand, lambda n: torch.randn(n) ** 3])
def test_no_step_of_a_fine_scan_fits_the_weights_noticeably_better(draw, seed):
    torch.manual_seed(seed)
    weight = draw(300)
    step = fit_step(weight)
    found = squared_error(weight, step)
    largest = weight.abs().max().item() / 127  # a usual choice of the step
    everywhere, nearby = torch.linspace(0.2, 1.2, 4000) * largest, torch.linspace(0.99, 1.01, 1000) * step
    scan = [squared_error(weight, s) for s in torch.cat([everywhere, nearby]).tolist()]
    assert found <= 1.005 * min(scan) and found < squared_error(weight, largest)


def test_for_its_integers_the_step_is_the_least_squares_one():
    weight = torch.randn(500).double()
    step = fit_step(weight)
    q = to_integers(weight, step)
    errors = [(weight - step * (1 + change) * q).square().sum() for change in (-1e-4, -1e-5, 0, 1e-5, 1e-4)]
    assert min(errors) == errors[2] < min(errors[1], errors[3])
    assert step == pytest.approx(((weight * q).sum() / (q * q).sum()).item(), rel=1e-12)


def test_integers_are_symmetric_and_the_weight_is_their_multiple():
    quantised = QuantisedModel(small_classifier(0))
    assert [layer.name for layer in quantised.layers] == ["conv1", "conv2", "fc"]
    for layer in quantised.layers:
        assert layer.integers.dtype == torch.int8 and layer.integers.min() >= -127 and layer.integers.max() <= 127
        assert torch.equal(layer.module.weight, layer.step * layer.integers)


def test_the_original_is_untouched_and_biases_and_batch_norm_are_kept():
    model = small_classifier(0)
    before = state_of(model)
    quantised = QuantisedModel(model)
    quantised.layers[0].flip(3, 7)
    assert same_state(before, state_of(model)) and all(p.requires_grad for p in model.parameters())
    after = state_of(quantised.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"conv1.weight", "conv2.weight", "fc.weight"}
    for layer in quantised.layers[1:]:
        original = dict(model.named_modules())[layer.name].weight
        assert (layer.module.weight - original).abs().median() < 0.51 * layer.step


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_flipping_a_bit_changes_exactly_that_weight_of_that_layer(memory):
    quantised = QuantisedModel(small_classifier(0).to(memory_format=memory))
    before = quantised.copy()
    conv2 = quantised.layers[1]
    old = conv2.integers.flatten()[37].item()
    conv2.flip(37, 6)
    for layer, other in zip(quantised.layers, before.layers, strict=True):
        different = (layer.integers != other.integers).flatten().nonzero().flatten().tolist()
        assert different == ([37] if layer is conv2 else [])
        moved = (layer.module.weight != other.module.weight).flatten().nonzero().flatten().tolist()
        assert moved == different
    assert conv2.integers.flatten()[37].item() - old in (64, -64)
    conv2.flip(37, 6)
    assert same_state(state_of(quantised.model), state_of(before.model))


def test_a_layer_of_zeros_stays_one_and_does_not_divide_by_zero():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    quantised = QuantisedModel(model)
    assert quantised.layers[0].step == 0 and not quantised.layers[0].integers.any()
    quantised.layers[0].flip(0, 7)
    assert torch.equal(quantised.layers[0].module.weight, torch.zeros(3, 4))
    assert quantised(torch.randn(2, 4)).isfinite().all()
