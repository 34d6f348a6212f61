"""A part's knobs: a frozen dataclass whose fields are flags. Default, range, unit and help of each stand once, there.

class Config(datafree.configuration.Config):
    lr_g: float = knob(2e-3, "learning rate of the generator", above=0)

value = given (command line or Python), else the preset for this task, else the field's default
"""

import argparse
import math
import numbers
import os
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from . import processes
from .errors import UserError
from .paths import absolute

LARGEST = 2**31  # of counts
NUMBERS = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}
KINDS = NUMBERS | {bool: (bool, "True or False"), str: (str, "a word"), Path: (str | Path, "a path")}
C = TypeVar("C", bound="Config")
Preset = Callable[[argparse.Namespace], Mapping[str, Any]]


def knob(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    check: Callable[[Any], None] | None = None,
    counts: tuple[int, ...] | None = None,
    unit: str | None = None,
    names: tuple[str, ...] = (),
    optional_value: bool = False,
    free: bool = False,
    when: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
    """A field that is a flag.

    Args:
        default: None for a flag that is worked out from others.
        help: says which way to turn it; the default is added where it is shown.
        low, high: the range, both ends included; ``above`` excludes its end. Of every item of a tuple.
        choices: the words it takes.
        check: raises ValueError for a value that it does not like.
        counts: how many values it may have.
        unit: stands for the value in help.
        names: further names of the flag.
        optional_value: whether the flag may stand without a value, which makes it True.
        free: whether it changes no number, so that a resumed run may have another.
        when: with which values of which other flags it has an effect; with all of them where it says nothing.

    Raises:
        ValueError: for a default of True, which nothing could switch off.
    """
    if default is True:
        raise ValueError("a flag cannot be on by itself: name its opposite, as in no_flip")
    told = {"help": help, "low": low, "high": high, "above": above, "choices": choices, "check": check}
    told |= {"counts": counts, "when": when or {}}
    return field(
        default=default, metadata=told | {"unit": unit, "names": names, "optional_value": optional_value, "free": free}
    )


@dataclass(frozen=True)
class Config:
    """Base of all knobs. Raises UserError, when made, for a value out of its range."""

    def __post_init__(self) -> None:
        for each in fields(self):
            try:
                _check_type(each, type(self), getattr(self, each.name))
                checked(each, getattr(self, each.name))
            except ValueError as error:
                raise UserError(f"--{each.name}: {error}", "see --help") from None
        self.check()

    def check(self) -> None:
        """Raises UserError for values that contradict each other."""

    @classmethod
    def of(cls: type[C], values: argparse.Namespace) -> C:
        """Its own among many values."""
        return cls(**{each.name: getattr(values, each.name) for each in fields(cls)})

    def share(self: C) -> C:
        """Of one process: its part of all that counts images (``unit="IMAGES"``).

        Raises:
            UserError: for a batch that several processes cannot share out.
        """
        counts = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["unit"] == "IMAGES"}
        return replace(self, **{name: processes.share(count, name) for name, count in counts.items() if count})


_hints = cache(typing.get_type_hints)  # of a class, asked for once for each of its fields


def kind_of(each: Field, config: type) -> tuple[type, int | None]:
    """A field's type, that of an item for a tuple; and how many items: None where it is none, 0 for any number."""
    hint = _hints(config)[each.name]
    if isinstance(hint, UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not NoneType)
    items = typing.get_args(hint)
    return (items[0], 0 if Ellipsis in items else len(items)) if items else (hint, None)


def convert(each: Field, kind: type, text: str) -> Any:
    """From a word of the command line. Raises ValueError where it is none of that kind, or out of range."""
    try:
        value = kind(os.path.expanduser(text) if kind is Path else text)  # --flag=~/file is not expanded by a shell
    except ValueError:
        raise ValueError(f"{text!r} is not {NUMBERS[kind][1] if kind in NUMBERS else kind.__name__}") from None
    return checked(each, value)


def _check_type(each: Field, config: type, value: Any) -> None:
    """Raises ValueError for what is of no kind that is wanted: from Python, anything may come."""
    kind, count = kind_of(each, config)
    unset = (value is None and each.default is None) or (value is True and each.metadata["optional_value"])
    if kind in KINDS and not unset:
        several = count is not None and isinstance(value, tuple | list)
        for item in value if several else (value,):
            if not isinstance(item, KINDS[kind][0]):
                raise ValueError(f"{item!r} is not {KINDS[kind][1]}")


def checked(each: Field, value: Any) -> Any:
    """The value. Raises ValueError where it is not one that the knob takes."""
    about = each.metadata
    if about["counts"] and isinstance(value, tuple | list) and len(value) not in about["counts"]:
        wanted = " or ".join(map(str, about["counts"]))
        raise ValueError(f"{len(value)} values ({' '.join(map(str, value))}): {wanted} are wanted")
    for item in value if isinstance(value, tuple | list) else (value,):
        if about["choices"] and item not in about["choices"] and not (item is None and each.default is None):
            raise ValueError(f"invalid choice: {item!r} (choose from {', '.join(about['choices'])})")
        if isinstance(item, int | float) and not isinstance(item, bool):
            _check_range(item, about)
        if about["check"] and item is not None:
            about["check"](item)
    return value


def _check_range(value: float, about: Mapping[str, Any]) -> None:
    low, high, above = about["low"], about["high"], about["above"]
    high = LARGEST if high is None and isinstance(value, int) else high
    inside = math.isfinite(value) and (low is None or value >= low) and (above is None or value > above)
    if not inside or (high is not None and value > high):
        bounds = [
            f"{word} {end:g}"
            for word, end in (("at least", low), ("above", above), ("at most", high))
            if end is not None
        ]
        raise ValueError(f"{value} is out of range: {', '.join(bounds) or 'finite'}")


def resolve(configs: Mapping[str, type[Config]], given: Mapping[str, Any], preset: Preset) -> argparse.Namespace:
    """Every knob of every config: what is given, else what the preset says, else the default.

    Args:
        configs: by title.
        given: by name; all of them knobs of these configs.
        preset: from the values known so far (given and defaults) to those for this task; names of other methods' or
            targets' knobs among them are passed over.
    """
    values = {
        each.name: None if each.default is MISSING else each.default
        for config in configs.values()
        for each in fields(config)
    } | dict(given)
    known = preset(argparse.Namespace(**values))
    values |= {name: value for name, value in known.items() if name in values and name not in given}
    return argparse.Namespace(**values)


def check_effect(configs: Mapping[str, type[Config]], asked: Container[str], values: argparse.Namespace) -> None:
    """Raises UserError for a flag that was ``asked`` for and, beside the others, has no effect."""
    for each in (each for config in configs.values() for each in fields(config) if each.name in asked):
        for other, wanted in each.metadata["when"].items():
            value = getattr(values, other)
            if value not in wanted:
                remedy = "" if wanted == (None,) else f", or choose --{other} {' or '.join(wanted)}"
                what = f"--{each.name} has no effect with --{other} {as_text(value)}"
                raise UserError(what, f"leave it out{remedy}")


def described(program: str, configs: Mapping[str, type[Config]], values: argparse.Namespace) -> dict[str, Any]:
    """For config.json: every value, and for whoever shows them the groups and defaults of their flags."""
    groups = {title: [each.name for each in fields(config)] for title, config in configs.items()}
    defaults = {each.name: absolute(each.default) for config in configs.values() for each in fields(config)}
    known = {name: absolute(value) for name, value in vars(values).items()}
    return {"program": program, **known, "groups": groups, "defaults": defaults}


def plain(value: Any) -> Any:
    """As JSON can hold it: paths become strings, tuples lists."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def as_text(value: Any) -> str:
    """As the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
