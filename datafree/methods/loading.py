"""A method by name, or out of a file of the user's own."""

from collections.abc import Mapping
from dataclasses import Field

from ..errors import UserError, nearest_names
from ..user_code import is_file, load
from .base import Method


def method_class(name: str, known: Mapping[str, type[Method]]) -> type[Method]:
    """The class behind ``--method``: of the registry, or of FILE.py:CLASS, whose code is run.

    Raises:
        UserError: where there is none of that name, the file cannot be run, or the class does not keep the contract.
    """
    if not is_file(name):
        if name in known:
            return known[name]
        file = f"{name}:CLASS" if name.endswith(".py") else "FILE.py:CLASS"
        raise UserError(f"unknown method {name!r}", f"{nearest_names(name, known)}; for one of your own {file}")
    found = load(name, "method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{name} is no class on datafree.methods.base.Method", "see docs/extending.md")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}", "see docs/extending.md for what a method has")
    if any(isinstance(value, Field) for value in vars(found.Config).values()):
        raise UserError(f"the Config of {name} is no dataclass", "put @dataclass(frozen=True) above it")
    return found
