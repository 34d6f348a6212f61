"""Work on files that the run need not wait for: one thing at a time, in one thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType


class Writer:
    """Does what it is given, where ``behind`` while the run goes on; whoever leaves it waits until all is done.

    What fails there is raised at the next thing that it is given, at :meth:`wait`, or at the end.

    Args:
        behind: False: at once, as if it were not there.
    """

    def __init__(self, behind: bool):
        self.behind = behind
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")  # started when first needed
        self._under_way: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """After what came before."""
        self.wait()
        if self.behind:
            self._under_way = self._thread.submit(work)
        else:
            work()

    def wait(self) -> None:
        """Until nothing is under way."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        with suppress(*([BaseException] if error is not None else [])):  # of two failures the first is told
            self.wait()
