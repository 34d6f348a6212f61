"""Names to things: the one mechanism behind models, data sets and whatever else is looked up by name."""

from collections.abc import Callable
from typing import Any

from .errors import UserError, nearest_names


class Registry(dict[str, Any]):
    """A dictionary that refuses a name twice and answers an unknown name with the nearest known ones.

    Args:
        kind: what the entries are, for messages ("model", "data set").
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __missing__(self, name: Any) -> Any:
        """Raises UserError, with the nearest known names."""
        raise UserError(f"unknown {self.kind} {name!r}", nearest_names(str(name), self))

    def add(self, name: str, entry: Any) -> Any:
        """Enters ``entry`` under ``name``. Raises ValueError where the name is taken."""
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self[name] = entry
        return entry

    def register(self, function: Callable) -> Callable:
        """Decorator: enters a function under its own name."""
        return self.add(function.__name__, function)
