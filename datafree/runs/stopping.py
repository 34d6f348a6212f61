"""Leaving in good order: a signal ends the run after the round under way, which is saved first."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

# SIGUSR1 is what batch systems send before they take a machine away, SIGHUP comes when the terminal is closed (unless
# nohup has it ignored), SIGBREAK is of Windows.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
SAME = 2.0  # seconds for one request to come twice, as where a launcher passes on what all got; chosen by us
IGNORED_HANGUP = getattr(signal, "SIGHUP", None), signal.SIG_IGN


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
    """Within, the first signal is remembered in ``received``; another, ``SAME`` seconds later, interrupts at once.

    In another thread than the main one, which alone can ask for signals, none is received.

    Args:
        told: called at the first signal.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.received: int | None = None
        self._told = told

    def __enter__(self) -> "StopRequests":
        heard = SIGNALS if threading.current_thread() is threading.main_thread() else []
        heard = [number for number in heard if (number, signal.getsignal(number)) != IGNORED_HANGUP]
        self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None:
            if now - self._since > SAME:
                raise KeyboardInterrupt(number)
            return
        self.received, self._since = number, now
        self._told()
