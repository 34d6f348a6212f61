"""A classifier with 8-bit weights, whose single bits can be read and flipped.

    w ~ step * q,    q = clamp(round(w / step), -127, 127)     one step a layer
    step = argmin |w - step * q|^2                             least squares: step = <w, q> / <q, q>

The range is symmetric, so no quantised weight is -128; a flipped bit can make one so. Convolutions and linear layers
are quantised, biases and BatchNorm stay as they are. Integers are stored in two's complement: bit b < 7 counts 2^b,
bit 7, the sign, -128.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, -128], dtype=torch.int8)  # what each counts, and is alone
LARGEST = 127
STARTS = torch.linspace(0.5, 1.2, 400, dtype=torch.float64)  # steps tried, in max|w| / 127; chosen by us


def flip_changes(integers: Tensor) -> Tensor:
    """By how much each integer changes as each of its bits is flipped: int8 (...) -> int16 (..., 8)."""
    integers = integers.unsqueeze(-1)
    return (integers ^ BITS.to(integers.device)).short() - integers.short()


def to_integers(weight: Tensor, step: float) -> Tensor:
    """The nearest integers in -127..127, step > 0: float -> float of that shape."""
    return (weight / step).round().clamp(-LARGEST, LARGEST)


def squared_error(weight: Tensor, step: float) -> float:
    """|w - step * q|^2 with the nearest integers q, in float64."""
    weight = weight.double()
    return (weight - step * to_integers(weight, step)).square().sum().item()


def fit_step(weight: Tensor) -> float:
    """The step of least squared error that was found; 0 for weights that are all zero.

    The error has many shallow local minima. Each of STARTS is improved once by least squares for its integers; from the
    best of them, integers and step alternate until neither changes.
    """
    weight = weight.detach().double()
    largest = weight.abs().max().item()
    if largest == 0:
        return 0.0

    def least_squares(step: float) -> float:  # not all q are 0, as max|w| is above 100 steps
        q = to_integers(weight, step)
        return ((weight * q).sum() / q.square().sum()).item()

    starts = (STARTS * largest / LARGEST).tolist()
    step = min(map(least_squares, starts), key=lambda step: squared_error(weight, step))
    for _ in range(100):
        before, step = step, least_squares(step)
        if step == before:
            break
    return step


@dataclass
class QuantisedLayer:
    """A convolution or linear layer whose weight is ``step * integers``."""

    name: str
    module: nn.Module
    integers: Tensor  # int8, in the weight's shape, contiguous
    step: float  # 0 where all weights were 0, and then no flip changes anything

    @torch.no_grad()
    def flip(self, index: int, bit: int) -> None:
        """Flips that bit of the weight at that place of the flattened layer; doing it again undoes it."""
        self.integers.view(-1)[index] ^= BITS[bit].item()
        self.module.weight.copy_(self.step * self.integers)


class QuantisedModel:
    """A copy of a classifier with 8-bit weights, which alone require gradients, in eval mode."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.layers: list[QuantisedLayer] = []
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                step = fit_step(module.weight)
                integers = to_integers(module.weight.double(), step or 1.0).to(torch.int8).contiguous()
                module.weight.copy_(step * integers).requires_grad_(True)
                self.layers.append(QuantisedLayer(name.removeprefix("network."), module, integers, step))

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.model(x)
