"""Code of the user's own, by the file that it lies in: a method or a network that the repository knows nothing of."""

import importlib.util
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any

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


@contextmanager
def beside(file: Path | str, with_ours: bool = False) -> Iterator[None]:
    """Within, modules beside a file, and its package, can be imported; afterwards another file's of the same names can.

    The command line is then the file's own, without words. Modules of ours by the same names are out of its sight,
    unless ``with_ours``.
    """
    path, words = Path(file).expanduser().resolve(), sys.argv
    folders = dict.fromkeys((path.parent, package_of(path)[0]))
    ours = {} if with_ours else _hidden_by(folders)
    for name in ours:
        del sys.modules[name]
    known = set(sys.modules)
    sys.path[:0], sys.argv = [str(folder) for folder in folders], [str(path)]
    try:
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
    found = getattr(module, attribute, None)
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
