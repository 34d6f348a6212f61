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

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from .quantisation import QuantisedLayer, QuantisedModel, flip_changes

Evaluate = Callable[[QuantisedModel], float]


def best_bit(layer: QuantisedLayer, gradient: Tensor, k_top: int, taken: set) -> tuple[int, int] | None:
    """The (index, bit) of largest positive gain that is not among those taken; None where there is none."""
    flat = gradient.flatten()
    indices = flat.abs().topk(min(k_top, len(flat))).indices
    changes = flip_changes(layer.integers.flatten()[indices])  # (k,) -> (k, 8)
    gain = flat[indices].unsqueeze(1) * layer.step * changes  # first-order rise of the loss, in nats
    for row, index in enumerate(indices.tolist()):
        for bit in range(8):
            if (index, bit) in taken:
                gain[row, bit] = -torch.inf
    row, bit = divmod(int(gain.argmax()), 8)
    return (int(indices[row]), bit) if gain[row, bit] > 0 else None


def bit_flip_attack(
    model: QuantisedModel, x: Tensor, labels: Tensor, evaluate: Evaluate, flips: int, k_top: int = 10
) -> pd.DataFrame:
    """Flips bits of the model in place, at most so many, each time the one found to raise the attacker's loss most.

    The attacker has images x (B, 3, H, W), as the model takes them, of classes ``labels`` (B,). Gives a row for no flip
    and one for each: flips so far; accuracy as ``evaluate`` measures it, and the attacker's loss (nats), after it; the
    layer, the weight's place in the flattened layer and the bit, 0 to 7, where 7 is the sign.
    """
    weights = [layer.module.weight for layer in model.layers]
    taken: dict[str, set] = {layer.name: set() for layer in model.layers}
    rows = [(0, evaluate(model), _loss(model, x, labels).item(), None, None, None)]
    for number in range(1, flips + 1):
        gradients, tried = torch.autograd.grad(_loss(model, x, labels), weights), []
        for layer, gradient in zip(model.layers, gradients, strict=True):
            found = best_bit(layer, gradient, k_top, taken[layer.name])
            if found is not None:
                layer.flip(*found)
                with torch.no_grad():
                    tried.append((_loss(model, x, labels).item(), layer, *found))
                layer.flip(*found)
        if not tried:
            break
        loss, layer, index, bit = max(tried, key=lambda candidate: candidate[0])
        layer.flip(index, bit)
        taken[layer.name].add((index, bit))
        rows.append((number, evaluate(model), loss, layer.name, index, bit))
    return _frame(rows)


def random_flips(model: QuantisedModel, generator: torch.Generator, evaluate: Evaluate, flips: int) -> pd.DataFrame:
    """As :func:`bit_flip_attack`, but of bits drawn uniformly (on the CPU) from all, each at most once; no loss."""
    ends = list(accumulate(8 * layer.integers.numel() for layer in model.layers))
    total, drawn = ends[-1], {}
    while len(drawn) < min(flips, total):
        drawn[int(torch.randint(total, (), generator=generator))] = None
    rows = [(0, evaluate(model), None, None, None, None)]
    for number, place in enumerate(drawn, 1):
        layer = model.layers[position := bisect_right(ends, place)]
        index, bit = divmod(place - ends[position] + 8 * layer.integers.numel(), 8)
        layer.flip(index, bit)
        rows.append((number, evaluate(model), None, layer.name, index, bit))
    return _frame(rows)


def _frame(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["flips", "accuracy", "loss", "layer", "index", "bit"])
    return frame.astype({"loss": float, "index": "Int64", "bit": "Int64"})


def _loss(model: QuantisedModel, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float(), labels)
