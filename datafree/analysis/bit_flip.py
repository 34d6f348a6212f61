"""The progressive bit search of the Bit-Flip Attack (Rakin, He and Fan, 2019): few flips that ruin an 8-bit classifier.

for n = 1..flips
    L = CE(M(x), y);  g = dL/dw of every quantised layer           M in eval mode, x and y are the attacker's
    for every layer l
        for its k_top weights i of largest |g_i|, and their bits b not flipped before:
            gain(i, b) = g_i * step_l * (change of q_i as b flips)           the rise of L to first order
        candidate_l = argmax gain, if that is above 0
        L_l = CE(M with candidate_l flipped, x, y);  flip it back
    flip the candidate of the largest L_l

As published, the best layer is found by trying. Within a layer we try the one bit of largest gain; the authors' code
flips, in each weight it picks, whichever bits the gradient's sign favours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantisation import BITS, QuantisedLayer, QuantisedModel, flip_changes

Evaluate = Callable[[QuantisedModel], float]


@dataclass(frozen=True)
class Flip:
    """One flip and what came of it.

    Attributes:
        layer: its name.
        index: the weight's place in the flattened layer.
        bit: 0 to 7, where 7 is the sign.
        loss_before, loss_after: the attacker's cross-entropy, in nats; None for random flips, which look at none.
        accuracy: what ``evaluate`` said after it.
    """

    layer: str
    index: int
    bit: int
    loss_before: float | None
    loss_after: float | None
    accuracy: float


def gains(layer: QuantisedLayer, gradient: Tensor, k_top: int) -> tuple[Tensor, Tensor]:
    """First-order rise of the loss for every bit of the layer's k_top weights of largest gradient.

    Args:
        layer: n weights.
        gradient: dL/dw, in the weight's shape.
        k_top: weights looked at; all of them where the layer has fewer.

    Returns:
        Their places in the flattened layer, (k,) int64, and the gains, (k, 8) in nats.
    """
    flat = gradient.flatten()
    indices = flat.abs().topk(min(k_top, len(flat))).indices
    changes = flip_changes(layer.integers.flatten()[indices])  # (k,) -> (k, 8)
    return indices, flat[indices].unsqueeze(1) * layer.step * changes


def best_bit(
    layer: QuantisedLayer, gradient: Tensor, k_top: int, taken: set[tuple[int, int]]
) -> tuple[int, int] | None:
    """The (index, bit) of largest positive gain that is not taken; None where there is none."""
    indices, gain = gains(layer, gradient, k_top)
    for row, index in enumerate(indices.tolist()):
        for bit in range(BITS):
            if (index, bit) in taken:
                gain[row, bit] = -torch.inf
    best = int(gain.argmax())
    row, bit = divmod(best, BITS)
    return (int(indices[row]), bit) if gain[row, bit] > 0 else None


def bit_flip_attack(
    model: QuantisedModel, x: Tensor, labels: Tensor, evaluate: Evaluate, flips: int, k_top: int = 10
) -> list[Flip]:
    """Flips bits of the model in place, each time the one found to raise the attacker's loss most.

    Args:
        model: attacked in place; give a copy to keep one.
        x: the attacker's images, normalised, (B, 3, H, W).
        labels: their classes, (B,).
        evaluate: accuracy of the model as it is, called after every flip.
        flips: at most so many; fewer where no layer has a bit of positive gain left.
        k_top: weights a layer whose bits are looked at.

    Returns:
        What was flipped, in order.
    """
    taken: dict[str, set[tuple[int, int]]] = {layer.name: set() for layer in model.layers}
    history: list[Flip] = []
    for _ in range(flips):
        loss, gradients = _gradients(model, x, labels)
        tried = []
        for layer, gradient in zip(model.layers, gradients, strict=True):
            found = best_bit(layer, gradient, k_top, taken[layer.name])
            if found is not None:
                layer.flip(*found)
                tried.append((_loss(model, x, labels), layer, *found))
                layer.flip(*found)
        if not tried:
            break
        loss_after, layer, index, bit = max(tried, key=lambda candidate: candidate[0])
        layer.flip(index, bit)
        taken[layer.name].add((index, bit))
        history.append(Flip(layer.name, index, bit, loss, loss_after, evaluate(model)))
    return history


def random_flips(model: QuantisedModel, generator: torch.Generator, evaluate: Evaluate, flips: int) -> list[Flip]:
    """As :func:`bit_flip_attack`, but of bits drawn uniformly from all of the model's, each at most once.

    Args:
        generator: random stream on the CPU.
    """
    sizes = [layer.integers.numel() * BITS for layer in model.layers]
    history: list[Flip] = []
    for drawn in _distinct(flips, sum(sizes), generator):
        for layer, size in zip(model.layers, sizes, strict=True):
            if drawn < size:
                index, bit = divmod(drawn, BITS)
                layer.flip(index, bit)
                history.append(Flip(layer.name, index, bit, None, None, evaluate(model)))
                break
            drawn -= size
    return history


def _distinct(count: int, below: int, generator: torch.Generator) -> list[int]:
    """So many different numbers in [0, below), or all of them; a permutation of a model's bits would fill a disk."""
    if count > below // 2:
        return torch.randperm(below, generator=generator)[:count].tolist()
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[int(torch.randint(below, (), generator=generator))] = None
    return list(drawn)


def _gradients(model: QuantisedModel, x: Tensor, labels: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    """The loss in nats and its gradient with respect to each layer's weight."""
    loss = F.cross_entropy(model(x).float(), labels)
    return loss.item(), torch.autograd.grad(loss, [layer.module.weight for layer in model.layers])


@torch.no_grad()
def _loss(model: QuantisedModel, x: Tensor, labels: Tensor) -> float:
    return F.cross_entropy(model(x).float(), labels).item()
