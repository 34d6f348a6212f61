"""Weights from files into networks.

of ours         state_dict_of, load_into    {"state_dict": ...}, every name and shape as it is
of any origin   load_classifier             what datafree/weights/ reads and matches; what it had to do, as remarks
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.specs import Size, pair, size_text
from ..errors import UserError, first_line
from ..weights.choice import Candidate, choose, why_not
from ..weights.mismatch import check_shapes, refuse_names
from ..weights.names import is_derived, is_extra
from ..weights.reading import Content, read
from ..weights.sets import is_data, keys_of, sets_in, unread
from .classifier import Classifier, check_has_values, duplicate, is_lazy
from .names import UNKNOWN, InputFormat

SHOWN = 3  # names in a remark
FORMAT = ("img_size", "mean", "std")  # as Classifier.input_format


def state_dict_of(content: Any, path: Path | str, what: str) -> dict[str, Tensor]:
    """The state dict in a loaded file of ours: under ``state_dict``.

    Raises:
        UserError: if there is none, or a value in it is not finite.
    """
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(_is_plain(value) for value in state.values()):
        raise UserError(f"{what} {path} holds no state_dict", "give the file that a run wrote")
    _check_finite(state, f"{what} {path}")
    return dict(state)


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Fills a network, all names and shapes matching. Raises UserError if they do not, saying what differs."""
    own = _tensors_of(model)
    if own.keys() != state.keys():
        refuse_names(list(own), list(state), f"{what} {path}")
    check_shapes(own, state, f"{what} {path}")
    model.load_state_dict(dict(state))


@dataclass(frozen=True)
class Loaded:
    """What came of reading a network's weights.

    Attributes:
        about: what else the file says (``arch``, ``dataset``, ``accuracy``, ...), plain values only.
        remarks: a line each, for the log: which weights were taken where that is not plain, and what was passed over.
    """

    about: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def load_classifier(
    model: nn.Module,
    path: Path | str,
    what: str = "teacher checkpoint",
    given: InputFormat = UNKNOWN,
    key: str | None = None,
) -> Loaded:
    """Fills a network from a file or folder of any common origin.

    A Classifier takes images as the file says, where it is one of ours and does, and ``given`` does not.

    Args:
        model: left as it was where the weights do not fit.
        path: see :mod:`datafree.weights.reading`.
        what: what the file is to the user, for messages.
        given: what is known of the images.
        key: which of several sets of weights to take, dotted; without, see :data:`datafree.weights.choice.ORDER`.

    Raises:
        UserError: the file cannot be read, has no weights, none that fit this network, or none under ``key``.
    """
    where, content = f"{what} {path}", read(path, what)
    sets = sets_in(content.value)
    if not sets:
        _refuse_content(content.value, where)
    about = content.value if isinstance(content.value, Mapping) else {}
    said = about["input_format"] if "input_format" in about else _format_beside(Path(path))
    kept = _format_in(said)
    if is_lazy(model):
        _materialise(model, given.img_size or kept.img_size, where)
    own = _kept_by(model)
    fitting = choose(sets, own, key, where, partial(_by_own_loading, model))
    extra = {k: v for k, v in fitting[0].values.items() if is_extra(k) and is_data(v)}
    state = _checked(fitting[0].values, own, where)
    # PyTorch, too, begins to count at 0 where a file of before 0.4.1 has no counter
    counters = {name: torch.zeros_like(own[name], device="cpu") for name in own if name.endswith("num_batches_tracked")}
    network = model.network if isinstance(model, Classifier) else model
    names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if any(each.is_meta for each in _tensors_of(network).values()) and names <= {*counters, *state}:
        network.to_empty(device="cpu")
    check_has_values(network, f"the network for {where}")
    try:
        model.load_state_dict(model.state_dict() | counters | state | extra)
    except Exception as error:  # of the network's own code
        raise UserError(f"{where} cannot be loaded: {first_line(error)}", "mend the network's own loading") from None
    if isinstance(model, Classifier) and kept != UNKNOWN:
        says = given.over(kept).for_channels(model.channels)
        model.take(says.img_size, says.mean, says.std)
    remarks = _remarks(content, fitting, own)
    if said is not None and kept == UNKNOWN:
        remarks.append("its input_format is none of this program's, with mean in 0..1 and std above 0: read past")
    plain = {str(name): value for name, value in about.items() if isinstance(value, str | int | float)}
    return Loaded(plain, [f"{where}: {remark}" for remark in remarks])


def _by_own_loading(model: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What a copy of the network has when it has loaded these in its own way; None where it refuses, or skips some.

    Its load_state_dict or hooks may know older names and shapes.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = duplicate(model)
            for value in _tensors_of(model).values():
                if value.is_floating_point() or value.is_complex():
                    value.fill_(torch.nan)  # what is left of it was not loaded
            model.load_state_dict(values)
            state = _tensors_of(model)
    except Exception:  # of the network's own code; of PyTorch, which says what does not fit in other words than here
        return None
    return None if any(value.isnan().any() for value in state.values()) else state


def _format_beside(path: Path) -> Any:
    """The input format in the config.json of an export, of which the path is the folder or a file in it."""
    folder = path if path.is_dir() else path.parent
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about.get("input_format") if isinstance(about, dict) and path.suffix in ("", ".safetensors") else None


def _format_in(kept: Any) -> InputFormat:
    """What a file of ours says of its network's images; UNKNOWN for anything that no run of this program wrote."""
    if not isinstance(kept, Mapping):
        return UNKNOWN
    size, mean, std = ([*each] if isinstance(each, list | tuple) else [] for each in map(kept.get, FORMAT))
    size = size or [kept.get("img_size")] * 2
    numbers = all(type(each) in (int, float) for each in (*mean, *std)) and all(type(each) is int for each in size)
    if not numbers or len(size) != 2 or min(size) < 1 or len(mean) not in (1, 3) or len(std) != len(mean):
        return UNKNOWN
    in_range = all(0 <= each <= 1 for each in mean) and all(0 < each < inf for each in std)
    return InputFormat(pair(size), None, tuple(mean), tuple(std)) if in_range else UNKNOWN


def _materialise(model: nn.Module, img_size: Size | None, where: str) -> None:
    """Has lazy layers make their weights for an image of that size, else of the network's. Raises UserError."""
    if not isinstance(model, Classifier):
        raise UserError(f"{where} is for a network with lazy layers, without weights yet", "give it an image first")
    size = img_size or model.img_size
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.network(torch.zeros(2, model.channels, *size))
    except Exception as error:  # of the network's own code
        what = f"{where} is for a network with lazy layers, which takes no images of {model.channels} channels"
        remedy = "say --teacher_img_size and --teacher_channels, or let the network be called once before it is given"
        raise UserError(f"{what} and {size_text(size)} pixels: {first_line(error)}", remedy) from None


def _checked(values: Mapping[str, Any], own: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """In the network's types. Raises UserError where a value is none that the network can have."""
    values = {name: value for name, value in values.items() if not is_extra(name)}
    own = {name: value for name, value in own.items() if not is_extra(name)}
    for name, value in values.items():
        if (reason := why_not(value, own[name])) is not None:
            raise UserError(f"{where} cannot be used: {name} is {reason}", "save its weights as plain float tensors")
    state = {k: v for k, v in values.items() if not is_derived(k) or v.shape == own[k].shape}
    check_shapes(own, state, where)
    state = {name: value.detach().to(own[name].dtype) for name, value in state.items()}
    _check_finite(state, where, own)
    return state


def _remarks(content: Content, fitting: list[Candidate], own: Mapping[str, Tensor]) -> list[str]:
    """What the user may want to know of the way to these weights."""
    taken, remarks = fitting[0], []
    if taken.key not in ((), ("state_dict",)):
        remarks.append(f"took the weights under {'.'.join(taken.key)}")
    if taken.changed:
        remarks.append("names or shapes changed as the network's own loading does")
    others = [".".join(each.key) or "(the file itself)" for each in fitting[1:] if not each.equals(taken)]
    if others:
        remarks.append(f"other weights in it fit, too: {', '.join(others)} (--teacher_weights names those to take)")
    if left := [*taken.match.passed_over, *taken.source.records]:
        remarks.append(f"passed over beside the network's names: {_some(left)}")
    if taken.source.whole:
        remarks.append(
            f"holds a network saved whole ({taken.source.whole}): its weights were read, nothing of its code was run"
        )
    elif content.strange:
        remarks.append(f"holds other objects, which were not made: {_some(content.strange)}")
    remarks += _of_extra(taken, own)
    kinds = {
        str(value.dtype).removeprefix("torch.")
        for name, value in taken.values.items()
        if not is_extra(name) and _is_cast(value, own[name])
    }
    if kinds:
        remarks.append(f"weights cast from {', '.join(sorted(kinds))}")
    return remarks


def _of_extra(taken: Candidate, own: Mapping[str, Any]) -> list[str]:
    """What became of all that is kept beside tensors."""
    theirs, wanted = taken.source.values, set(taken.match.names.values())
    extra = [name for name in theirs if is_extra(name)]
    said = {
        "did not take {}: the network has nothing of the kind": [name for name in extra if name not in wanted],
        "did not take {}: it is no plain data": [n for n in extra if n in wanted and not is_data(theirs[n])],
        "has no {}: it stays as the network makes it": [n for n in own if is_extra(n) and n not in taken.match.names],
    }
    return [text.format(_some(names)) for text, names in said.items() if names]


def _is_cast(value: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and value.dtype != own.dtype


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")


def _refuse_content(content: Any, where: str) -> None:
    held = _some(keys_of(content)) or getattr(content, "name", type(content).__name__)
    raise UserError(
        f"{where} holds no state_dict, nor weights in another form, but {held}",
        "save {'state_dict': model.state_dict()}",
    )


def _kept_by(model: nn.Module) -> dict[str, Any]:
    """Its tensors, and what its modules keep beside them."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor) or is_extra(name)}


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and unread(value) is None


def _check_finite(state: Mapping[str, Tensor], where: str, own: Mapping[str, Tensor] | None = None) -> None:
    """Raises UserError for NaN and infinity, but where the network itself has the same, as a mask of -inf does."""
    for name, value in state.items():
        bad = ~value.isfinite()
        if bad.any() and not (
            own and not own[name].is_meta and torch.equal(value[bad], own[name].to(value.device)[bad])
        ):
            raise UserError(f"{where} has NaN or infinite values in {name}", "train or copy it anew")
