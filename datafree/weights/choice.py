"""Which of a file's weights a network gets: those that have all its names and its shapes, the first in ``ORDER``."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .mismatch import refuse_names
from .names import MARKS, Match, difference, is_derived, is_extra, matches, without_twins, wrappers_before
from .sets import WeightSet, joined, unread, without_records

ORDER = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
ORDER += ("teacher", "student")  # then any other, in the file's order; averages of a training's weights come last
AVERAGES = {"ema", "averaged", "avg", "swa", "shadow"}
LISTED = 8  # keys
# A network's own loading: what becomes of these weights by its names, or None where it does not take them
OwnLoading = Callable[[dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True)
class Candidate:
    """A set of weights that has all the network's names, or got them as its own loading ``changed`` theirs."""

    source: WeightSet
    match: Match
    changed: bool = False

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The keys that lead to it, and what stands before its names; marks of PyTorch's wrappers left out."""
        before = self.match.prefix.split(".")[:-1]
        return (*self.source.path, *(part for part in before if part not in MARKS))

    @cached_property
    def values(self) -> dict[str, Any]:
        """By the network's names."""
        return {name: self.source.values[theirs] for name, theirs in self.match.names.items()}

    def fits(self, own: Mapping[str, Tensor]) -> bool:
        """Whether they could be put into the network."""
        return all(
            why_not(value, own[name]) is None and value.shape == own[name].shape
            for name, value in self.values.items()
            if not is_derived(name)
        )

    def equals(self, other: "Candidate") -> bool:
        """Whether it makes no difference which of the two is taken."""
        pairs = [(value, other.values[name]) for name, value in self.values.items() if not is_derived(name)]
        return all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)


def why_not(value: Any, own: Tensor) -> str | None:
    """What a tensor in the file is that it cannot be this weight, whatever its shape."""
    if unread(value) is None and value.is_complex() and not own.is_complex():
        return "complex"
    if unread(value) is None and own.is_floating_point() and not value.is_floating_point():
        return f"of whole numbers ({str(value.dtype).removeprefix('torch.')})"
    return unread(value)


def choose(
    sets: list[WeightSet], own: Mapping[str, Tensor], key: str | None, where: str, loading: OwnLoading
) -> list[Candidate]:
    """What fits the network, best first; where nothing does, what has its names at least.

    Args:
        sets: of the file.
        own: the network's weights by name.
        key: dotted, of the set to be taken; the first in ``ORDER`` without.
        where: the file, for messages.
        loading: asked where nothing fits as it is.

    Raises:
        UserError: nothing has the network's names, or there is nothing under ``key``.
    """
    sets = without_records(sets, own)
    found = _candidates(sets, own) or _candidates(joined(sets), own)
    named = [each for each in found if key is None or _is_under(key, each.key)]
    if not any(each.fits(own) for each in named):
        changed = [_changed(each, own, loading) for each in sets if key is None or _is_under(key, each.path)]
        named = [each for each in changed if each is not None and each.fits(own)] or named
    if not named:
        of_key = [each for each in sets if key is None or _is_under(key, each.path)]
        if not of_key:
            known = dict.fromkeys(".".join(each) for each in (*(c.key for c in found), *(s.path for s in sets)))
            listed = [repr(each) if each else "(the file itself)" for each in known]
            shown = ", ".join(listed[:LISTED]) + (", ..." if len(listed) > LISTED else "")
            raise UserError(f"{where} has no weights under {key!r}", f"there are: {shown}")
        closest = min(of_key, key=lambda each: (len(difference(own, each.values)[0]), -len(each.values)))
        at = f" (under {'.'.join(closest.path)})" if len(sets) > 1 and closest.path else ""
        refuse_names(list(own), list(closest.values), where + at)
    named.sort(key=lambda each: (".".join(each.key) != key, _rank(each.key)))
    return [each for each in named if each.fits(own)] or named


def _candidates(sets: list[WeightSet], own: Mapping[str, Tensor]) -> list[Candidate]:
    tied = _tied(own)
    found = []
    for each in sets:
        ways = matches(list(own), list(each.values))
        if not ways and tied:
            ways = matches(without_twins(list(own), list(each.values), tied), list(each.values))
        found += [Candidate(each, match) for match in ways]
    return found


def _tied(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of the same numbers in memory; some savers keep one of each."""
    names = defaultdict(list)
    for name, value in own.items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.data_ptr():
            names[value.data_ptr(), value.dtype, value.shape, value.stride()].append(name)
    return [each for each in names.values() if len(each) > 1]


def _changed(source: WeightSet, own: Mapping[str, Tensor], loading: OwnLoading) -> Candidate | None:
    """What the network's own loading makes of weights, with or without the wrappers before all their names."""
    extra = {name: value for name, value in source.values.items() if is_extra(name)}
    values = {name: value for name, value in source.values.items() if name not in extra}
    whole = [
        sum(not v.is_floating_point() for v in each if isinstance(v, Tensor))
        for each in (values.values(), own.values())
    ]
    if any(unread(value) for value in values.values()) or whole[0] > whole[1]:  # copied, these would be cast
        return None
    for before in dict.fromkeys(("", wrappers_before(values))):
        state = loading({name.removeprefix(before): value for name, value in source.values.items()})
        if state is not None:
            state |= {name.removeprefix(before): value for name, value in extra.items()}
            state = {name: value for name, value in state.items() if name in own}
            return Candidate(replace(source, values=state), Match("", {n: n for n in state}, []), True)
    return None


def _is_under(key: str, path: tuple[str, ...]) -> bool:
    """Whether a dotted key is the way there, or a part of it."""
    return f".{key}." in f".{'.'.join(path)}."


def _rank(key: tuple[str, ...]) -> tuple[bool, list[int]]:
    places = [ORDER.index(part) if part in ORDER else len(ORDER) for part in key]
    return any(AVERAGES & set(re.split(r"[._\W]", part.lower())) for part in key), places
