"""Code of the user's own, by the file that it lies in: a method or a network that the repository knows nothing of."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, nearest_names


def is_file(name: str) -> bool:
    """Whether a name is FILE.py:SOMETHING."""
    return ".py:" in name


@contextmanager
def beside(file: Path | str) -> Iterator[None]:
    """Within, modules beside a file can be imported; afterwards another file's of the same names can."""
    folder, known = Path(file).expanduser().resolve().parent, set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            top = name.partition(".")[0]
            if top not in known and ((folder / f"{top}.py").exists() or (folder / top / "__init__.py").exists()):
                del sys.modules[name]


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
    spec = importlib.util.spec_from_file_location(f"datafree_own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        with beside(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{what} file {path} cannot be run: {type(error).__name__}: {error}", "mend it") from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UserError(f"{path} has nothing called {attribute!r}", nearest_names(attribute, names))
    return found
