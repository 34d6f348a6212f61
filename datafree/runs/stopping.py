"""Leaving in good order: a signal ends the run after the round under way, which is saved first."""

import signal
from types import FrameType, TracebackType

# SIGUSR1 is what batch systems send before they take a machine away.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):  # noqa: N818 (not an error: the user asked for it)
    """The run was asked to stop and has saved its state.

    Args:
        signal_number: what asked.
        message: one line on what was saved and how to go on.
    """

    def __init__(self, signal_number: int, message: str):
        self.signal_number = signal_number
        super().__init__(message)


class StopRequests:
    """Within, the first signal is remembered in ``received``; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
