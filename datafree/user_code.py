"""Code of the user's own, by the file that it lies in: a method or a network that the repository knows nothing of."""

import importlib.util
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import UserError, nearest_names

ROOT = Path(__file__).resolve().parents[1]
OURS = ("datafree", "registry", "main", "train_scratch")  # what is imported by these names where no file of a user's is


def is_file(name: str) -> bool:
    """Whether a name is FILE.py:SOMETHING."""
    return ".py:" in name


def package_of(path: Path) -> tuple[Path, str]:
    """The folder that a file's package lies in, and the package's name; its own folder and "" where it is in none."""
    folder, names = path.parent, []
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _folder() -> str:
    """The working folder; "" where it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def default_device() -> torch.device:
    """Of tensors made here; torch.get_default_device fails in PyTorch 2.6 where it was set to None."""
    return torch.empty(0).device


SETTINGS = {  # that hold for everybody: how each is asked for, and set
    "working folder": (_folder, lambda folder: folder and os.chdir(folder)),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (default_device, lambda d: torch.set_default_device(None if d.type == "cpu" else d)),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
}
_set_by: dict[Path, dict[str, Any]] = {}  # what each file changed of these, which holds whenever it is at work


def _settings() -> dict[str, Any]:
    return {name: ask() for name, (ask, _) in SETTINGS.items()}


def _change(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        SETTINGS[name][1](value)


@contextmanager
def settings_of(file: Path | None = None) -> Iterator[None]:
    """Within, the working folder and PyTorch's default dtype, device and gradients are what the file has set them to;
    afterwards what they were before. Says so, once a file, where that is not the same."""
    before, known = _settings(), _set_by.get(file, {})
    _change(known)
    changed: dict[str, Any] = {}
    try:
        yield
        changed = {name: value for name, value in _settings().items() if value != before[name]}
    finally:
        _change({name: before[name] for name, value in _settings().items() if value != before[name]})
    if file is not None and changed:
        _set_by[file] = changed
        if changed.keys() - known.keys():
            print(f"{file} sets {', '.join(changed)} for everybody: holds for its own code alone", file=sys.stderr)


@contextmanager
def plain_settings() -> Iterator[None]:
    """Within, PyTorch makes tensors in fp32 on the CPU where it is told nothing, whatever the caller has set."""
    with settings_of(), ExitStack() as stack:
        torch.set_default_dtype(torch.float32)
        if default_device().type != "cpu":
            torch.set_default_device(None)
            stack.enter_context(torch.device("cpu"))  # the caller may be in such a context
        yield


@contextmanager
def beside(file: Path | str, with_ours: bool = False) -> Iterator[None]:
    """Within, modules beside a file, and its package, can be imported; afterwards another file's of the same names can.

    The command line is then the file's own, without words; what it sets for everybody holds in here alone. Modules of
    ours by the same names are out of its sight, unless ``with_ours``.
    """
    path, words = Path(file).expanduser().resolve(), sys.argv
    folders = dict.fromkeys((path.parent, package_of(path)[0]))
    ours = {} if with_ours else _hidden_by(folders)
    for name in ours:
        del sys.modules[name]
    known = set(sys.modules)
    sys.path[:0], sys.argv = [str(folder) for folder in folders], [str(path)]
    try:
        with settings_of(path):
            yield
    finally:
        sys.argv = words
        for folder in folders:
            sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            top = name.partition(".")[0]
            if top not in known and _lies_in(folders, top):
                del sys.modules[name]
        sys.modules.update(ours)


def _hidden_by(folders: Iterable[Path]) -> dict[str, ModuleType]:
    """This repository's modules whose names are taken in these folders: CMI's have a registry.py and a datafree/."""
    taken = {name for name in OURS if ROOT not in folders and _lies_in(folders, name)}
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in taken}


def _lies_in(folders: Iterable[Path], name: str) -> bool:
    return any((folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists() for folder in folders)


def load(name: str, what: str) -> Any:
    """What FILE.py:SOMETHING names. Runs the file; modules beside it can be imported from it.

    Args:
        name: as the user gave it.
        what: what it is to the user, for messages ("method").

    Raises:
        UserError: no such file, it cannot be run, or nothing of that name in it.
    """
    file, _, attribute = name.partition(".py:")
    path = Path(file + ".py").expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{what} file {path} does not exist", "check the path")
    package, said = package_of(path)[1], io.StringIO()
    try:
        with beside(path, with_ours=what == "method"), redirect_stderr(said):
            module = _executed(path, package)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        told = [f"{type(error).__name__}: {error}", *said.getvalue().strip().splitlines()[-1:]]
        raise UserError(f"{what} file {path} cannot be run: {', '.join(told)}", "mend it") from error
    sys.stderr.write(said.getvalue())
    found = reduce(lambda within, part: getattr(within, part, None), attribute.split("."), module)
    if found is None:
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UserError(f"{path} has nothing called {attribute!r}", nearest_names(attribute, names))
    return found


def _executed(path: Path, package: str) -> ModuleType:
    name = f"{package}.{path.stem}" if package else f"datafree_own_{path.stem}"
    if package:
        importlib.import_module(package)
        if name in sys.modules:  # the package has it already
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
