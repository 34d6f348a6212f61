"""Names to things: the one mechanism behind models, data sets and whatever else is looked up by name."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .errors import UserError, nearest_names


class Registry:
    """A dictionary that refuses a name twice and answers an unknown name with the nearest known ones.

    Args:
        kind: what the entries are, for messages ("model", "data set").
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def add(self, name: str, entry: Any) -> Any:
        """Enters ``entry`` under ``name``. Raises ValueError where the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def register(self, function: Callable) -> Callable:
        """Decorator: enters a function under its own name."""
        return self.add(function.__name__, function)

    def __getitem__(self, name: str) -> Any:
        """The entry of that name. Raises UserError, with the nearest known names, where there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(f"unknown {self.kind} {name!r}", nearest_names(str(name), self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterable[tuple[str, Any]]:
        """Names and entries, in the order they were entered."""
        return self._entries.items()
