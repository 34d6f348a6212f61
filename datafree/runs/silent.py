"""The folder of a run as all of its processes but the first have it: they know where it is, and write nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class SilentFolder:
    """Takes what ``RunFolder`` takes.

    Args:
        path: of the folder.
        resume: whether the run goes on with what is there.
    """

    def __init__(self, path: Path, resume: bool):
        self.path, self.resumed = Path(path), resume
        self._started, self._seconds_before = time.perf_counter(), 0.0

    def complete(self) -> bool:
        """The first process knows."""
        return False

    def start(self, epoch: int = 0, seconds: float = 0.0) -> None:
        """See ``RunFolder.start``."""
        self._seconds_before = seconds

    def epochs(self, total: int, done: int = 0) -> Iterator[int]:
        """done+1..total."""
        return iter(range(done + 1, total + 1))

    def seconds(self) -> float:
        """See ``RunFolder.seconds``."""
        return self._seconds_before + time.perf_counter() - self._started

    def nothing(self, *args: Any, **kwargs: Any) -> None:
        """The first process does it."""

    log = record = show_images = save = save_array = save_config = save_json = status = finish = nothing

    def __enter__(self) -> "SilentFolder":
        return self

    def __exit__(self, *error: object) -> None:
        return
