"""Files that hold tensors and plain values: written whole or not at all, loaded as data and never as code."""

import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from .errors import UserError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls ``write`` with a binary file that replaces ``path`` only once everything is on the disk.

    Raises:
        UserError: where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}", "free some space or choose another folder") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def save(content: Mapping[str, Any], path: Path) -> None:
    """Writes a dictionary of tensors and plain values. Raises UserError as :func:`write_whole` does."""
    write_whole(path, lambda file: torch.save(dict(content), file))


def load(path: Path | str, what: str = "checkpoint") -> Any:
    """Reads a file of tensors and plain values onto the CPU.

    Args:
        path: the file.
        what: what the file is to the user, for messages ("teacher checkpoint").

    Raises:
        UserError: if it is missing, a folder, unreadable, damaged, or holds anything but data.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{what} {path} does not exist", "check the path")
    if not path.is_file():
        raise UserError(f"{what} {path} is not a file", "name the .pth file itself")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{what} {path} cannot be read", "check its permissions") from None
    except pickle.UnpicklingError as error:
        if "weights only" in str(error).lower() or "Unsupported" in str(error):
            raise UserError(
                f"{what} {path} holds code or whole modules, not just tensors and plain values",
                "save its state_dict() and give that; nothing in the file was run",
            ) from None
        raise UserError(f"{what} {path} is damaged or not a checkpoint", "copy it anew") from None
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise UserError(
            f"{what} {path} is damaged or not a checkpoint ({type(error).__name__})", "copy it anew"
        ) from None


def state_dict_of(content: Any, path: Path | str, what: str) -> dict[str, Tensor]:
    """The state dict in a loaded file: under ``state_dict``, or the file itself; a ``module.`` prefix is dropped.

    Raises:
        UserError: if there is none, or a value in it is not finite.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what} {path} holds no state_dict", "save {'state_dict': model.state_dict()}")
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"{what} {path} has NaN or infinite values in {bad}", "train or copy it anew")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Fills a network, all names and shapes matching.

    Raises:
        UserError: if they do not match, naming the first difference; a last layer of another height is called what
            it is, another class count.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if missing or extra:
        first = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}"
        raise UserError(f"{what} {path} is of another architecture: {first}", "name the model that it was saved from")
    wrong = [key for key in own if own[key].shape != state[key].shape]
    last_weight = [key for key in own if own[key].ndim == 2][-1:]
    if wrong and wrong[0] in last_weight:
        here, there = len(own[wrong[0]]), len(state[wrong[0]])
        raise UserError(
            f"{what} {path} has {there} classes, {here} are wanted", "choose the data set it was trained on"
        )
    if wrong:
        shapes = f"{wrong[0]} is {tuple(state[wrong[0]].shape)} there, {tuple(own[wrong[0]].shape)} here"
        raise UserError(f"{what} {path} is of another architecture: {shapes}", "name the model that it was saved from")
    model.load_state_dict(dict(state))


def load_classifier(model: nn.Module, path: Path | str, what: str = "teacher checkpoint") -> dict[str, Any]:
    """Fills a classifier from a file of ours or of the CMI / Fast-Datafree model zoo.

    Returns:
        What else the file says (``arch``, ``dataset``, ``accuracy``, ...), plain values only.

    Raises:
        UserError: see :func:`load`, :func:`state_dict_of` and :func:`load_into`.
    """
    content = load(path, what)
    load_into(model, state_dict_of(content, path, what), path, what)
    return {key: value for key, value in content.items() if isinstance(value, str | int | float)}
