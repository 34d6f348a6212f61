"""One look before the first epoch: what a network cannot do is said while nothing is written yet.

A speed-up that a network does not bear, channels-last memory or autocast, is left out for it, with a line for the log.
"""

import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn

from .. import processes
from ..data.specs import Shape, size_text
from ..errors import UserError, first_line, is_out_of_memory
from ..models.classifier import Classifier, is_lazy
from .device import Compute
from .randomness import global_draws_forgotten

STEADY = 1e-4  # of logits of the same images, relative to the largest: sums on a GPU in another order; chosen by us
TOLERANCE = 1e-2  # of logits in another memory order, relative to the largest: rounding, however long the network

Batches = dict[bool, Tensor]  # pixels by mode, True that of training; a network that is only asked has no such

MORE = 4  # times as many images, where a batch seems to be too small; chosen by us
OTHER_TYPE = r"input type \(.*(double|half|bfloat16)|same dtype|expected scalar type"  # PyTorch's words for a mixture
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # images in a batch that networks are exported for
SIDES = (28, 32, 48, 64, 84, 96, 112, 128, 160, 192, 224, 227, 240, 256, 299, 384)  # that networks are made for


def fitted(classifier: Classifier, what: str, shape: Shape, compute: Compute, train_batch: int = 0) -> list[str]:
    """Places a classifier on the device with every speed-up that it bears, after having it answer a little noise.

    Draws no random numbers of the run and leaves the network's numbers as they are.

    Args:
        classifier: gets its ``memory_format`` and ``autocast`` set.
        what: what it is to the user, for messages ("teacher runs/a.pth").
        shape: of the images (C, H, W) that it will be given.
        compute: device and precision.
        train_batch: images a step where the network will be trained; 0 for one that is only asked, in eval mode.

    Returns:
        Lines for the log: what is left out, and what looks wrong without being so for certain.

    Raises:
        UserError: if it cannot take such images, gives no logits of the class count, or NaN or infinity, or lets no
            gradient through to its images.
    """
    noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(compute.device)
    batches = {False: noise} | ({True: noise[:train_batch]} if train_batch else {})  # by mode: of one image, it may be
    remarks = []
    classifier.memory_format, classifier.autocast = torch.contiguous_format, False
    classifier.to(compute.device)
    _materialise(classifier, what, batches, compute)
    if train_batch and not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise UserError(f"{what} has no weights to train", "choose another model, or set requires_grad")
    answers = {train: _answer(classifier, what, batches, compute, train) for train in batches}
    _answer(classifier, what, {False: torch.cat([noise, noise[:1]])}, compute, False)  # it may be made for just two
    remarks += [f"{what}: of {', '.join(places)} its logits are {place}" for places, place in classifier.picked.items()]
    if classifier.scripted and not train_batch:
        remarks.append(f"{what} is TorchScript, which shows no layers: BatchNorm statistics want the network itself")
    if not _is_steady(classifier, noise):
        remarks.append(
            f"warning: {what} answers the same images otherwise each time - dropout or noise in its eval mode?"
        )
    flat = all(map(looks_like_probabilities, answers.values()))
    if classifier.num_classes == 2 and not any(logits[:, 0].any() for logits in answers.values()):
        advice = " - if that is a sigmoid's, return what goes into it" if flat else ""
        remarks.append(f"{what} gives one logit: the second class's, beside 0 for the first{advice}")
    elif any(map(looks_like_probabilities, answers.values())):
        remarks.append(f"warning: {what} seems to end in a softmax or sigmoid, flat at any temperature - return logits")

    def reason(like: Tensor | None = None) -> str:
        refused = (refusal(classifier, batches[m], compute, m, None if m else like) for m in batches)
        return next(filter(None, refused), "")

    classifier.memory_format = compute.memory_format
    try:
        compute.place(classifier)
        why = reason(answers[False])
    except RuntimeError as error:  # weights of other ranks than images have
        why = f"it fails ({first_line(error)})"
    if why:
        classifier.memory_format = torch.contiguous_format
        classifier.to(memory_format=torch.contiguous_format)
        remarks.append(f"{what} runs in PyTorch's default memory order: in channels-last {why}")
    if compute.autocasts:
        classifier.autocast = True
        why = reason()
        if why:
            classifier.autocast = False
            remarks.append(f"{what} runs in fp32: under {compute.precision} autocast {why}")
    return remarks


def _materialise(classifier: Classifier, what: str, batches: Batches, compute: Compute) -> None:
    """Has lazy layers see an image, and so get their weights, always the same ones. Raises as :func:`fitted` does."""
    if is_lazy(classifier):
        with _in_one_line(classifier, what, batches, compute, False), torch.no_grad(), global_draws_forgotten():
            torch.manual_seed(0)
            classifier(batches[False])


def _is_steady(classifier: Classifier, x: Tensor) -> bool:
    """Whether it gives the same answers in eval mode whatever random numbers it could draw."""
    answers = []
    with torch.no_grad(), global_draws_forgotten(), untouched(classifier, False):
        for seed in (0, 1):
            torch.manual_seed(seed)
            answers.append(classifier(x))
    return bool((answers[0] - answers[1]).abs().max() <= STEADY * answers[0].abs().max())


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether all of (B, C) lies in [0, 1] and differs, as behind a softmax or a sigmoid."""
    return logits.shape[1] > 1 and bool(((logits >= 0) & (logits <= 1)).all()) and bool(logits.any())


def _answer(classifier: Classifier, what: str, batches: Batches, compute: Compute, train: bool) -> Tensor:
    """The logits, in the plainest way there is. Raises UserError as :func:`fitted` does."""
    with _in_one_line(classifier, what, batches, compute, train):
        logits = _run(classifier, batches[train], compute, train)
    if not logits.isfinite().all():
        raise UserError(f"{what} answers noise with NaN or infinite numbers", "train or copy it anew")
    return logits


@contextmanager
def _in_one_line(classifier: Classifier, what: str, batches: Batches, compute: Compute, train: bool) -> Iterator[None]:
    """Whatever a network's own code raises becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        size, colours = size_text(classifier.img_size), "grey" if classifier.channels == 1 else "colour"
        given = f"{what} cannot take batches of {len(batches[train])} {colours} images of {size} pixels"
        remedy = _remedy(classifier, what.partition(" ")[0], str(error), batches, compute, train)
        raise UserError(f"{given}{' in training' if train else ''}: {first_line(error)}", remedy) from None


def _remedy(classifier: Classifier, role: str, said: str, batches: Batches, compute: Compute, train: bool) -> str:
    """What the network takes instead of its images, as far as that shows: in what it said, or given other things."""
    network, channels, size = classifier.network, classifier.channels, classifier.img_size
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels), None)
    if first is not None and first.in_channels not in (1, 3):
        return f"its first convolution takes {first.in_channels} channels, images have 1 or 3: wrap it in a module"
    if first is not None and first.in_channels != channels:
        return f"its first convolution takes {first.in_channels} channels: say --{role}_channels {first.in_channels}"
    with suppress(ValueError):  # of compiled code, which has no signature
        try:
            inspect.signature(network.forward).bind("images")
        except TypeError as error:
            return f"its forward does not take images alone, by position ({error}): wrap it in a module that does"
    if train and not refusal(classifier, batches[train].repeat_interleave(MORE, 0), compute, train):
        return "give it larger batches, or choose another model"
    if re.search(OTHER_TYPE, said, re.IGNORECASE):
        return "networks run in fp32 here: take double(), half() and bfloat16() out of it, or cast back with float()"
    if _bears(classifier, [train], channels, *size, count=len(batches[train])):
        return "it answers where no gradients are asked for: let them through its forward, or choose another model"
    answers = partial(_bears, classifier, batches)
    count = next((n for n in COUNTS if answers(channels, *size, count=n)), None)
    if count is not None:
        return f"it takes batches of {count} alone: make it for any number, as dynamic_shapes of torch.export does"
    if answers(channels, *size, order=torch.channels_last):
        return "let its forward begin with x = x.contiguous(memory_format=torch.channels_last)"
    if answers(*size, channels):
        return "it takes images with their channels last: wrap it in a module that gives it x.permute(0, 2, 3, 1)"
    flat = "wrap it in nn.Sequential(nn.Flatten(), network)"
    if answers(channels * size[0] * size[1]):
        return f"it takes rows of numbers, no images: {flat}"
    reads = next((m.in_features for m in network.modules() if isinstance(m, nn.Linear)), 0) if first is None else 0
    for c in (channels, 4 - channels):  # 1 or 3
        side = isqrt(reads // c)
        if side and c * side**2 == reads:
            also = "" if answers(c, side, side) else f", and {flat}"
            say = f"--{role}_img_size {side} --{role}_channels {c}"
            return f"its first layer takes {reads} numbers an image: say {say}{also}"
    side = next((side for side in SIDES if answers(channels, side, side)), None)
    if side is not None:
        return f"it answers images of {side}x{side} pixels: say --{role}_img_size {side}"
    if train:  # eval mode came first
        return "it answers in eval mode alone: mend its training mode, or choose another model"
    return f"give the size that it was made for with --{role}_img_size, or mend it where size is not what fails"


def _bears(
    classifier: Classifier,
    modes: Iterable[bool],
    *shape: int,
    count: int = 2,
    order: torch.memory_format = torch.contiguous_format,
) -> bool:
    """Whether the network inside answers so many things of that shape with anything, in each of these modes."""
    try:
        for train in modes:
            with torch.no_grad(), untouched(classifier, train):
                x = torch.zeros(count, *shape, device=classifier.mean.device)
                classifier.network(x.contiguous(memory_format=order))
    except Exception:  # in whatever words
        return False
    return True


def refusal(
    classifier: Classifier,
    x: Tensor,
    compute: Compute,
    train: bool,
    expected: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> str:
    """Why it does not bear to run as it is set now; empty where it does, and answers as expected."""
    try:
        logits = _run(classifier, x, compute, train)
    except Exception as error:
        if is_out_of_memory(error) or processes.is_loss(error):
            raise
        return f"it fails ({first_line(error)})"
    if not logits.isfinite().all():
        return "its answers are not finite"
    if expected is not None and (logits - expected).abs().max() > tolerance * expected.abs().max().clamp_min(1e-6):
        return "it answers otherwise"
    return ""


def _run(classifier: Classifier, x: Tensor, compute: Compute, train: bool) -> Tensor:
    """Logits for pixels, forward and backward. Raises UserError where no gradient comes through to the images."""
    x = x.clone().requires_grad_()
    with global_draws_forgotten(), untouched(classifier, train) as network:
        torch.manual_seed(0)  # the same dropout each time
        with compute.autocast():
            logits = network(x)
        with _seeing_layers_run(network):
            (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True) if logits.requires_grad else (None,)
    if gradient is None:
        what = f"the forward of {classifier.name} lets no gradient through to its images"
        raise UserError(what, "take torch.no_grad(), .detach() and .data out of it")
    return logits.detach()


@contextmanager
def _seeing_layers_run(classifier: Classifier) -> Iterator[None]:
    """Notes that it recomputes, where any of its layers runs within."""

    def note(*_: object) -> None:
        classifier.recomputes = True

    layers = (module for module in classifier.network.modules() if not isinstance(module, torch.jit.ScriptModule))
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def untouched(classifier: Classifier, train: bool) -> Iterator[Classifier]:
    """Within, it is in train or eval mode; what that changes (running statistics) is undone afterwards."""
    modes = {module: module.training for module in classifier.modules()}
    state = copy.deepcopy(classifier.state_dict()) if train else {}  # more than tensors, where a layer keeps more
    try:
        yield classifier.train(train)
    finally:
        if train:
            classifier.load_state_dict(state)
        for module, mode in modes.items():
            module.training = mode
