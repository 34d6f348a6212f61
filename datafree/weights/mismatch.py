"""What is said of weights that do not fit a network: in one line, with what to do about it."""

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from torch import Tensor

from ..errors import UserError
from .names import difference, nearest

SHOWN = 3  # names on each side
SAVED_FROM = "name the model that it was saved from"
PARAMETRISED = re.compile(r"(weight_(orig|mask|g|u)|parametrizations\.\w+\.(original\d?|\d+\.\w+))$")  # by PyTorch
MAKE_PLAIN = "its weights are pruned or normalised: do the same to the network, or make them plain before saving"


def refuse_names(own: Sequence[str], found: Sequence[str], where: str) -> NoReturn:
    """Raises UserError: the names in the file are not the network's."""
    missing, left = difference(own, found)
    if not missing and not left:  # wrappers alone differ, and taken away they would make two names one
        missing, left = [name for name in own if name not in found], [name for name in found if name not in own]
    if missing:
        near = nearest(missing[:SHOWN], left or list(found))
        said = f"it lacks {len(missing)} of {len(own)} names ({_some(missing)}; nearest in it: {_some(near)})"
        said += f" and has {len(left)} others" if left else ""
    else:
        near = nearest(left[:SHOWN], list(own))
        said = f"it has {len(left)} names more than the network ({_some(left)}; nearest in the network: {_some(near)})"
    remedy = MAKE_PLAIN if left and all(map(PARAMETRISED.search, left)) else SAVED_FROM
    raise UserError(f"{where} is of another architecture: {said}", remedy)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError for weights of other shapes than the network's; another number of classes or of input channels,
    all else being equal, is called what it is."""
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if not wrong:
        return
    channels, said, remedy = _channels(own, state), [], SAVED_FROM
    rest = [name for name in wrong if channels is None or name != channels[0]]
    classes = _classes(own, state, rest)
    if channels and (classes or not rest):
        first, there, here = channels
        plural = "channel" if there == 1 else "channels"
        said.append(f"takes {there} {plural} in the file, {here} here ({first}, its first convolution)")
        remedy = f"give --teacher_channels {there} if it is the teacher, or name the model that it was saved from"
    if classes:
        there, here = classes
        said.append(f"has {there} classes, {here} are wanted")
        remedy = remedy if channels else "choose the data set it was trained on"
    if not said:
        shapes = [f"{name} is {tuple(state[name].shape)} there, {tuple(own[name].shape)} here" for name in wrong]
        said = [f"is of another architecture: {'; '.join(shapes[:SHOWN])}{'; ...' if len(shapes) > SHOWN else ''}"]
    raise UserError(f"{where} {' and '.join(said)}", remedy)


def _channels(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """The first convolution, and the input channels that it takes there and here, where these alone differ."""
    first = next((name for name in own if own[name].ndim == 4), None)
    if first not in state or state[first].ndim != 4:
        return None
    there, here = state[first].shape, own[first].shape
    alike = (there[0], *there[2:]) == (here[0], *here[2:])
    return (first, there[1], here[1]) if alike and there[1] != here[1] else None


def _classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], wrong: Sequence[str]) -> tuple[int, int] | None:
    """The outputs there and here, where only the heights of linear layers or 1x1 convolutions that give them differ.

    A layer between others would differ in its width, too, or the next one would.
    """
    if any(own[name].shape[1:] != state[name].shape[1:] or not own[name].ndim for name in wrong):
        return None
    pairs = {(len(state[name]), len(own[name])) for name in wrong}
    heads = [
        name for name in wrong if name.endswith("weight") and own[name].ndim > 1 and own[name].shape[2:].numel() == 1
    ]
    return pairs.pop() if heads and len(pairs) == 1 else None
