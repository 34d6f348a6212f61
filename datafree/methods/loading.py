"""A method by name, or out of a file of the user's own."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path

from ..errors import UserError, nearest_names
from .base import Method


def is_file(name: str) -> bool:
    """Whether a name of a method is FILE.py:CLASS."""
    return ".py:" in name


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
    file, _, attribute = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"method file {file} does not exist", "check the path")
    spec = importlib.util.spec_from_file_location(f"datafree_method_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"method file {file} cannot be run: {type(error).__name__}: {error}", "mend it") from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{file} has no class {attribute} on datafree.methods.base.Method", "see docs/methods.md")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}", "see docs/methods.md for what a method has")
    if any(isinstance(value, Field) for value in vars(found.Config).values()):
        raise UserError(f"the Config of {name} is no dataclass", "put @dataclass(frozen=True) above it")
    return found
