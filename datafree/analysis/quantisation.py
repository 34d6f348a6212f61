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

BITS = 8
BIT_VALUES = (1, 2, 4, 8, 16, 32, 64, -128)
LARGEST = 127
START_STEPS, START_RANGE = 400, (0.5, 1.2)  # steps tried, from and to that many times max|w| / 127; chosen by us
MAX_ALTERNATIONS = 100


def read_bits(integers: Tensor, bit: int) -> Tensor:
    """Whether that bit is set in each: int8 of any shape -> bool of that shape."""
    return (integers.view(torch.uint8) >> bit) & 1 == 1


def flip_bits(integers: Tensor, bit: int) -> Tensor:
    """The integers with that bit flipped in each: int8 -> a new int8."""
    return (integers.view(torch.uint8) ^ (1 << bit)).view(torch.int8)


def flip_changes(integers: Tensor) -> Tensor:
    """By how much each integer changes as each of its bits is flipped: int8 (...) -> int16 (..., 8)."""
    set_bits = torch.stack([read_bits(integers, bit) for bit in range(BITS)], -1)
    values = torch.tensor(BIT_VALUES, dtype=torch.int16, device=integers.device)
    return torch.where(set_bits, -values, values)


def to_integers(weight: Tensor, step: float) -> Tensor:
    """The nearest integers in -127..127, step > 0: float -> float of that shape."""
    return (weight / step).round().clamp(-LARGEST, LARGEST)


def squared_error(weight: Tensor, step: float) -> float:
    """|w - step * q|^2 with the nearest integers q, in float64."""
    weight = weight.double()
    return (weight - step * to_integers(weight, step)).square().sum().item()


def fit_step(weight: Tensor) -> float:
    """The step of least squared error that was found; 0 for weights that are all zero.

    The error has many shallow local minima, more of them the fewer weights there are. Each of START_STEPS steps is
    improved once by least squares for its integers; from the best of them, integers and step alternate until neither
    changes.
    """
    weight = weight.detach().double()
    largest = weight.abs().max().item()
    if largest == 0:
        return 0.0
    starts = torch.linspace(*START_RANGE, START_STEPS, dtype=torch.float64) * largest / LARGEST
    step = min((_least_squares(weight, start) for start in starts.tolist()), key=lambda s: squared_error(weight, s))
    for _ in range(MAX_ALTERNATIONS):
        better = _least_squares(weight, step)
        if better == step:
            break
        step = better
    return step


def _least_squares(weight: Tensor, step: float) -> float:
    """<w, q> / <q, q> for the integers q of this step; not all are 0, as max|w| is above 100 steps."""
    q = to_integers(weight, step)
    return ((weight * q).sum() / q.square().sum()).item()


@dataclass
class QuantisedLayer:
    """A convolution or linear layer whose weight is ``step * integers``.

    Attributes:
        name: as in ``model.named_modules()``.
        module: the layer itself.
        integers: int8, in the weight's shape, contiguous.
        step: size of one level; 0 where all weights were 0, and then no flip changes anything.
    """

    name: str
    module: nn.Module
    integers: Tensor
    step: float

    def flip(self, index: int, bit: int) -> None:
        """Flips that bit of the weight at that place of the flattened layer; doing it again undoes it."""
        one = self.integers.view(-1)[index : index + 1]
        one.copy_(flip_bits(one, bit))
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Puts ``step * integers`` into the layer."""
        self.module.weight.copy_(self.step * self.integers)


class QuantisedModel:
    """A copy of a classifier with 8-bit weights, in eval mode; the original is left alone.

    Only the quantised weights require gradients, which a search for bits wants.

    Args:
        model: any classifier with convolutions or linear layers.
    """

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.layers: list[QuantisedLayer] = []
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.layers.append(_quantised(name, module))
                module.weight.requires_grad_(True)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C)."""
        return self.model(x)

    def copy(self) -> "QuantisedModel":
        """Another with the same bits, to be flipped on its own."""
        return copy.deepcopy(self)


def _quantised(name: str, module: nn.Module) -> QuantisedLayer:
    step = fit_step(module.weight)
    scaled = to_integers(module.weight.detach().double(), step) if step else torch.zeros_like(module.weight)
    layer = QuantisedLayer(name, module, scaled.to(torch.int8).contiguous(), step)
    layer.write()
    return layer
