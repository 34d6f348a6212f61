"""Weights from files into networks, names and shapes matching."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..data.specs import pair
from ..errors import UserError
from .classifier import Classifier
from .names import UNKNOWN, InputFormat


def state_dict_of(content: Any, path: Path | str, what: str) -> dict[str, Tensor]:
    """The state dict in a loaded file: under ``state_dict``, or the file itself; a ``module.`` prefix is dropped.

    Raises:
        UserError: if there is none, or a value in it is not finite.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(_is_plain(value) for value in state.values()):
        raise UserError(f"{what} {path} holds no state_dict", "save {'state_dict': model.state_dict()}")
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"{what} {path} has NaN or infinite values in {bad}", "train or copy it anew")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _is_plain(value: Any) -> bool:
    """A dense tensor of real numbers, with data."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and not value.is_quantized and not value.is_complex()


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Fills a network, all names and shapes matching.

    Raises:
        UserError: if they do not match, naming the first difference; a last linear layer of another height, all else
            being equal, is called what it is, another class count.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if missing or extra:
        first = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}"
        raise UserError(f"{what} {path} is of another architecture: {first}", "name the model that it was saved from")
    wrong = [key for key in own if own[key].shape != state[key].shape]
    last_weight = next((key for key in reversed(own) if own[key].ndim == 2), "")
    last_linear = {last_weight, last_weight.removesuffix("weight") + "bias"}
    if last_weight in wrong and set(wrong) <= last_linear and state[last_weight].ndim == 2:
        here, there = len(own[last_weight]), len(state[last_weight])
        raise UserError(
            f"{what} {path} has {there} classes, {here} are wanted", "choose the data set it was trained on"
        )
    if wrong:
        shapes = f"{wrong[0]} is {tuple(state[wrong[0]].shape)} there, {tuple(own[wrong[0]].shape)} here"
        raise UserError(f"{what} {path} is of another architecture: {shapes}", "name the model that it was saved from")
    model.load_state_dict(dict(state))


def load_classifier(
    model: nn.Module, path: Path | str, what: str = "teacher checkpoint", given: InputFormat = UNKNOWN
) -> dict[str, Any]:
    """Fills a network from a file of ours or of the CMI / Fast-Datafree model zoo.

    A Classifier takes images as the file says, where it does and ``given`` does not.

    Returns:
        What else the file says (``arch``, ``dataset``, ``accuracy``, ...), plain values only.

    Raises:
        UserError: see :func:`files.load`, :func:`state_dict_of` and :func:`load_into`.
    """
    content = files.load(path, what)
    load_into(model, state_dict_of(content, path, what), path, what)
    if isinstance(model, Classifier) and isinstance(content.get("input_format"), dict):
        kept = content["input_format"]
        says = given.over(InputFormat(pair(kept["img_size"]), None, tuple(kept["mean"]), tuple(kept["std"])))
        says = says.for_channels(model.channels)
        model.take(says.img_size, says.mean, says.std)
    return {key: value for key, value in content.items() if isinstance(value, str | int | float)}
