"""Where the logits lie in what a network answers: a tensor, or tuples, dicts and objects of tensors, at any depth.

Of several tensors of the right width, these are the logits, the first that tells them apart:
1. the name         logits; then prediction, output, scores and the like; never features, embedding, aux
2. the layer        what the last linear layer or convolution as wide as the classes gives
3. evaluation       of several such heads in training, the one that answers in eval mode
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

ANSWERS = ("prediction", "pred", "output", "out", "score", "y", "y_hat", "y_pred", "cls", "class", "classification")
OTHERS = ("aux", "feat", "embed", "hidden", "loss", "attention")  # within a name
NAMED, LIKELY, UNNAMED, OTHER = range(4)  # how much a name says for a tensor
DEEPEST = 4  # tuples in tuples; chosen by us
Picked = dict[tuple[str, ...], str]  # of several places, the one that was found to hold the logits


def logits_of(answer: Any, num_classes: int, name: str, picked: Picked | None = None) -> Tensor:
    """The logits (B, num_classes) in whatever a network returns.

    Of two classes one logit z will do, (B, 1) or (B,): the logits are then 0 and z, whose softmax is z's sigmoid.

    Args:
        answer: what it returned.
        num_classes: the width of the logits.
        name: what the network is to the user.
        picked: what :func:`pick` found before.

    Raises:
        UserError: there are none, or several tensors that may be them; says what there is.
    """
    return as_logits(_found(answer, num_classes, name, picked)[1], num_classes)


def expression(answer: Any, num_classes: int, picked: Picked) -> str:
    """What Python writes behind a call of the network to get the logits, ``["out"].flatten(1)``; torch is imported."""
    place, tensor = _found(answer, num_classes, "the network", picked)
    if tensor.shape[1:].numel() != num_classes:
        return f"{place}.reshape(-1, 1) * torch.tensor([0.0, 1.0])"
    return place if tensor.ndim == 2 else f"{place}.flatten(1)"


def _found(answer: Any, num_classes: int, name: str, picked: Picked | None) -> tuple[str, Tensor]:
    """Place and tensor of the logits. Raises as logits_of does."""
    found = candidates(answer, num_classes)
    places = tuple(found)
    if picked and places in picked:
        places = (picked[places],)
    if len(places) == 1:
        return places[0], found[places[0]]
    if places:
        what = f"{name} answers several tensors that may be its logits: {', '.join(places)}"
        raise UserError(what, "let its forward return the logits alone, or a dict with them under 'logits'")
    theirs = _classes_in(answer)
    if theirs not in (None, num_classes):
        what = f"{name} has {theirs} classes, and the data have {num_classes}: it answers {described(answer)}"
        remedy = f"name the data that it was made for (of a folder, --num_classes {theirs}), or one of {num_classes}"
        raise UserError(what, remedy)
    remedy = f"let its forward return logits (images, {num_classes})"
    raise UserError(f"{name} answers {described(answer)}, not logits of {num_classes} classes", remedy)


def _classes_in(answer: Any) -> int | None:
    """How many classes an answer seems to hold logits of; None where that cannot be told."""
    rows = [(_says(name), t.shape[1:]) for _, name, t in tensors_in(answer) if t.is_floating_point() and t.ndim > 1]
    rows = [(says, max(shape)) for says, shape in rows if shape.numel() == max(shape) > 1 and says != OTHER]
    counts = {width for says, width in rows if says == min(rows)[0]}
    return counts.pop() if len(counts) == 1 else None


def candidates(answer: Any, num_classes: int) -> dict[str, Tensor]:
    """What may be the logits by shape and name, by its place as Python writes it: ``["out"].logits``; "" for all."""
    tensors = [each for each in tensors_in(answer) if each[2].is_floating_point()]
    fits = [each for each in tensors if as_logits(each[2], num_classes) is not None]
    wide = [each for each in fits if each[2].shape[1:].numel() == num_classes]  # else one logit of two classes
    best = min([OTHER, *(_says(name) for _, name, _ in wide or fits)])  # PyTorch 2.6 compiles no default
    places = [place for place, _, _ in fits]
    others = [name for place, name, tensor in tensors if place not in places and (tensor.ndim == 2 or name == "logits")]
    if best == OTHER or min([OTHER, *map(_says, others)]) < min(best, UNNAMED):
        return {}  # by their names they are none, or another is, of another width
    return {place: tensor for place, name, tensor in wide or fits if _says(name) == best}


def _says(name: str) -> int:
    """How much a name says for a tensor's being the logits."""
    name = name.lower()
    if name == "logits":
        return NAMED
    if any(part in name for part in OTHERS):
        return OTHER
    return LIKELY if "logit" in name or name in ANSWERS or name.removesuffix("s") in ANSWERS else UNNAMED


def as_logits(tensor: Tensor, num_classes: int) -> Tensor | None:
    """(B, C) of (B, C), (B, C, 1, 1), (B, 1, C) and so on, of two classes also of one logit an image; or None."""
    shape = tensor.shape[1:]
    if tensor.ndim > 1 and shape.numel() == num_classes == max(shape):
        return tensor.flatten(1)
    if num_classes == 2 and tensor.ndim > 0 and shape.numel() == 1 and tensor.is_floating_point():
        z = tensor.flatten()
        return torch.stack([torch.zeros_like(z), z], 1)
    return None


def tensors_in(answer: Any, place: str = "", name: str = "", depth: int = 0) -> list[tuple[str, str, Tensor]]:
    """Every tensor with its place and its name, which is its container's where it is one of a list."""
    if isinstance(answer, Tensor):
        return [(place, name, answer)]
    found: list[tuple[str, str, Tensor]] = []
    for key, how, part in _parts(answer) if depth < DEEPEST else []:
        found += tensors_in(part, place + how, key or name, depth + 1)
    return found


def _parts(answer: Any) -> list[tuple[str, str, Any]]:
    """What a container holds: name, or "" of one among many; how Python gets at it; and it."""
    if isinstance(answer, Mapping):
        return [(str(key), f"[{key!r}]", part) for key, part in answer.items()]
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return [(key, f".{key}", getattr(answer, key)) for key in answer._fields]
    if isinstance(answer, tuple | list):
        return [("", f"[{i}]", part) for i, part in enumerate(answer)]
    if isinstance(answer, nn.Module | type) or not hasattr(answer, "__dict__"):
        return []
    known = dict(vars(answer))
    if hasattr(answer, "logits"):  # which may be worked out
        known["logits"] = answer.logits
    return [(key, f".{key}", part) for key, part in known.items()]


def described(answer: Any) -> str:
    """Of whatever a network returned: its type, and the shapes in it."""
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)}"
    parts = [described(part).removeprefix("a tensor ").removeprefix("a ") for _, _, part in _parts(answer)]
    return f"a {type(answer).__name__}" + (f" of {', '.join(parts)}" if parts else "")


def pick(network: nn.Module, x: Tensor, num_classes: int) -> str:
    """Of several places, the one that holds the logits, as a forward pass on x tells, which is what the network takes.

    Empty where they cannot be told apart.
    """
    found, made = _watched(network, x, num_classes)
    last = [(layer, output) for layer, output in made if not any(_reads(later, output) for _, later in made)]
    heads: dict[nn.Module, str] = {}  # where what it gives lies, or else what is computed from that: scaled logits
    for layer, output in last:
        same = [place for place, tensor in found.items() if _same(tensor, output)]
        from_it = same[:1] or [place for place, tensor in found.items() if _reads(tensor, output)]
        if from_it:
            heads[layer] = from_it[0] if len(from_it) == 1 else ""
    if len(heads) > 1 and network.training:
        answering = _head_in_evaluation(network, x, num_classes)
        heads = {layer: place for layer, place in heads.items() if layer is answering}
    places = set(heads.values())
    return places.pop() if len(places) == 1 else ""


def _head_in_evaluation(network: nn.Module, x: Tensor, num_classes: int) -> nn.Module | None:
    """The layer that gives the answer in eval mode, where that is one tensor of one layer."""
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()  # which need not return anything
        found, made = _watched(network, x, num_classes)
    finally:
        for module, mode in modes.items():
            module.training = mode
    layers = [layer for layer, output in made for tensor in found.values() if _same(tensor, output)]
    return layers[0] if len(layers) == 1 else None


def _watched(network: nn.Module, x: Tensor, num_classes: int) -> tuple[dict[str, Tensor], list]:
    """The candidates in the answer to x; each layer that is as wide as the classes, and what it gave."""
    made: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, args: tuple, output: Tensor) -> None:
        if as_logits(output, num_classes) is not None:
            made.append((layer, output))

    hooks = [m.register_forward_hook(keep) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    try:
        with torch.enable_grad():
            return candidates(network(x.detach().requires_grad_()), num_classes), made
    finally:
        for hook in hooks:
            hook.remove()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether one is the other, reshaped or cast."""
    return a.numel() == b.numel() and (a.data_ptr() == b.data_ptr() or torch.equal(a.flatten(), b.flatten().to(a)))


def _reads(later: Tensor, earlier: Tensor) -> bool:
    """Whether one was computed from the other."""
    if later is earlier or not (later.requires_grad and earlier.requires_grad):
        return False
    return torch.autograd.grad(later.sum(), earlier, retain_graph=True, allow_unused=True)[0] is not None
