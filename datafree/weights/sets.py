"""The sets of weights in what a file holds: under whatever key, at whatever depth, told by content.

a dictionary (or an object) with tensors in it                      a set
an object with _parameters, _buffers, _modules                      a network saved whole: its state dict is a set
a dictionary with param_groups, or under a key such as optimizer    what an optimiser remembers: passed over
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..errors import printable
from .names import is_extra
from .pickles import StandIn, as_array

OF_TRAINING = re.compile(  # keys of what has a network's names and is none of its weights
    r"optim(?!al|um|i[sz]ed)|sched|scaler|rng_|^(grads?|gradients|momentum|momentum_buffer|exp_avg|exp_avg_sq)$",
    re.IGNORECASE,
)
OF_RECORD = re.compile(  # names of single numbers that a training's record keeps beside the weights
    r"epoch|step|iter|best|acc|prec|top.?\d|loss|err|lr$|score|metric|seed|time|version|count", re.IGNORECASE
)
OF_NETWORKS = {"_parameters", "_buffers", "_modules"}
UNREAD = {  # functions of PyTorch that make tensors which no network here takes: what those are
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_meta_tensor_no_storage": "on the meta device, without values",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_wrapper_subclass": "of a kind that needs code of its own",
}
MOST, DEEPEST = 1000, 100  # sets of a file, and levels, that are looked at
NUMBERS = (str, bytes, int, float, complex, NoneType)


@dataclass(frozen=True)
class WeightSet:
    """Tensors by name.

    Attributes:
        path: the keys that lead to it from the file's root.
        values: a tensor each, dense or not; a StandIn for one that could not be put together; under names that
            ``is_extra`` tells, whatever the file has.
        whole: the class of the network that was saved whole, or None.
        records: names of what was beside these and is no weight.
    """

    path: tuple[str, ...]
    values: dict[str, Any]
    whole: str | None = None
    records: tuple[str, ...] = ()


def sets_in(content: Any) -> list[WeightSet]:
    """All sets in a file's content, each before those inside it."""
    return _inside(content, {}, 0)


def joined(sets: list[WeightSet]) -> list[WeightSet]:
    """What lies in several dictionaries side by side as one set: of {"backbone": {...}, "head": {...}}."""
    above = dict.fromkeys(each.path[:depth] for each in sets for depth in range(len(each.path)))
    whole = []
    for path in above:
        inside = [each for each in sets if each.path[: len(path)] == path]
        values = {
            ".".join((*each.path[len(path) :], name)): value for each in inside for name, value in each.values.items()
        }
        records = tuple(".".join((*each.path[len(path) :], name)) for each in inside for name in each.records)
        whole += [WeightSet(path, values, records=records)] if len(inside) > 1 else []
    return whole


def without_records(sets: list[WeightSet], own: Collection[str]) -> list[WeightSet]:
    """The sets without single numbers of a training's record, as ``epoch`` and ``best_acc``, that a network has not.

    A number of another name may be a weight, as CLIP's ``logit_scale`` is, and so may one within a layer.
    """
    last = {name.rpartition(".")[2] for name in own}
    plain = []
    for each in sets:
        records = [n for n, value in each.values.items() if n not in last and _is_record(n, value)]
        values = {name: value for name, value in each.values.items() if name not in records}
        plain += [replace(each, values=values, records=tuple(records))] if values else []
    return plain or sets


def _is_record(name: str, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.numel() != 1 or "." in name:
        return False
    return not value.is_floating_point() or bool(OF_RECORD.search(name))


def unread(value: Tensor | StandIn) -> str | None:
    """Why no network takes it; None for a dense tensor with values."""
    if isinstance(value, StandIn):
        return UNREAD.get(value.name.rpartition(".")[2], f"an object of {value.name}")
    if value.is_quantized:
        return "quantised"
    if value.layout != torch.strided or value.is_nested:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.").replace("_", " ")
    if value.device.type != "cpu":
        return "on the meta device, without values"
    return None


def is_data(value: Any, depth: int = 0) -> bool:
    """Whether it is tensors, numbers and words through and through, so that a network may be given it."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return depth < DEEPEST and all(is_data(each, depth + 1) for each in value)
    return isinstance(value, (Tensor, bytearray, torch.dtype, torch.device, *NUMBERS))


def keys_of(content: Any) -> list[str]:
    """The file's own keys, to tell the user what it holds."""
    return list(_entries(content))


def _inside(node: Any, known: dict[int, list[WeightSet]], depth: int) -> list[WeightSet]:
    """The sets in a node, their paths beginning there; ``known`` has those of nodes met before, by their id."""
    if id(node) in known or depth > DEEPEST:
        return known.get(id(node), [])
    known[id(node)] = []  # should it hold itself
    entries, sets = _entries(node), []
    if entries.keys() >= OF_NETWORKS:
        whole = node.name if isinstance(node, StandIn) else "a network"
        sets.append(WeightSet((), dict(_state_of(node, "", set())), whole))
    elif "param_groups" not in entries:
        tensors = {key: _tensor(value) for key, value in entries.items()}
        tensors = {key: value for key, value in tensors.items() if value is not None}
        extra = {key: value for key, value in entries.items() if is_extra(key)}
        sets += [WeightSet((), tensors | extra)] if tensors.keys() - extra.keys() else []
        for key, value in entries.items():
            if key not in tensors | extra and not OF_TRAINING.search(key):
                sets += [replace(each, path=(key, *each.path)) for each in _inside(value, known, depth + 1)]
    known[id(node)] = sets[:MOST]
    return known[id(node)]


def _entries(node: Any) -> dict[str, Any]:
    """What a container holds, by key: of an object, what its pickle gave it."""
    if isinstance(node, Mapping):
        return {_name(key): value for key, value in node.items()}
    if isinstance(node, list) and node and all(_is_named(pair) for pair in node):
        return _entries(dict(node))
    if isinstance(node, list | tuple):
        return {str(at): value for at, value in enumerate(node) if not isinstance(value, NUMBERS)}
    if not isinstance(node, StandIn):
        return {}
    found = _entries(node.args) | _entries(node.elements)
    states = node.state if isinstance(node.state, tuple) else (node.state,)
    for state in (*states, node.entries):  # two states where the class has slots
        found |= _entries(state) if isinstance(state, Mapping) else {}
    return found


def _name(key: Any) -> str:
    """With dots between its parts, as PyTorch has it; some keep weights under paths."""
    text = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
    return printable(text if "." in text else text.strip("/").replace("/", "."))


def _is_named(pair: Any) -> bool:
    """Whether it is of what named_parameters() gives."""
    return isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)


def _tensor(value: Any) -> Tensor | StandIn | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, StandIn):
        return value if value.name.rpartition(".")[2] in UNREAD or value.name == "a view" else as_array(value)
    return None


def _state_of(module: Any, prefix: str, above: set[int]) -> Iterator[tuple[str, Tensor | StandIn]]:
    """The state dict of a network that was saved whole, as nn.Module.state_dict gives it."""
    entries, above = _entries(module), above | {id(module)}
    passing = entries.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(entries.get(kind)).items():
            tensor = _tensor(value)
            if tensor is not None and not (kind == "_buffers" and isinstance(passing, set) and name in passing):
                yield prefix + name, tensor
    for name, child in _entries(entries.get("_modules")).items():
        if id(child) not in above and len(above) < DEEPEST:
            yield from _state_of(child, f"{prefix}{name}.", above)
