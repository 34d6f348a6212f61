"""One run of main.py: as it is planned, as a process, and as a task of submitit.

Imports nothing but Python: what waits for a run on a cluster needs no PyTorch.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TORCHRUN = "TORCHELASTIC_RUN_ID"  # set for what torchrun has started

PROGRAM = Path(__file__).resolve().parents[1] / "main.py"
LISTEN_SECONDS = 1.0

if os.name == "nt":  # a group there is what a session is elsewhere
    APART, INTERRUPT = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}, signal.CTRL_BREAK_EVENT
else:
    APART, INTERRUPT = {"start_new_session": True}, signal.SIGINT


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        name: by which messages and other jobs call it.
        flags: of main.py.
        folder: where its run is, or will be: see launching.folder_of.
        after: the name of the job that must have finished before; None where it waits for nothing.
    """

    name: str
    flags: Sequence[str]
    folder: Path
    after: str | None = None

    def command(self) -> list[str]:
        return [sys.executable, str(PROGRAM), *self.flags, "--resume"]


class Ended(NamedTuple):
    """Exit status (None: it never began) and the last line of what it wrote to stderr."""

    status: int | None
    said: str


class Process:
    """A command apart from the terminal's signals, so that each reaches it once, by way of :meth:`stop`.

    Args:
        command: what to run.
        variables: set for it beside those of this process.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None):
        self.command = list(command)
        own = {name: value for name, value in os.environ.items() if name != TORCHRUN}  # a run of its own
        self.environment = own | dict(variables or {})
        self.asked, self.process, self._lock = False, None, threading.RLock()

    def __call__(self) -> Ended:
        self.start()
        return self.wait()

    def start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read when it has ended)
        output = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": self._errors}
        process = subprocess.Popen(self.command, env=self.environment, **output, **APART)
        with self._lock:
            self.process, late = process, self.asked
        if late:
            process.send_signal(INTERRUPT)

    def wait(self) -> Ended:
        with self._errors:
            while self.process.poll() is None:  # a signal just before a wait without end would be heard after it
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=LISTEN_SECONDS)
            status = self.process.returncode
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
        return Ended(status, said[-1] if said else "")

    def stop(self, again: bool = False) -> None:
        """Asks it to save and leave, once, now or when it has begun; ``again``: to leave at once, if it was asked."""
        with self._lock:
            first, self.asked = not self.asked, True
        if self.process is not None and (first or again):
            self.process.send_signal(INTERRUPT)


class Task:
    """What submitit calls on a node of the cluster, and calls again where the run was cut short.

    Slurm's signals come here alone. The one before the time is over is submitit's: it calls :meth:`checkpoint` and
    queues the task again. At SIGTERM, too, the run saves and leaves; then nothing is returned: Slurm has cancelled the
    task, or begins it again by itself (preempted, requeued).

    Args:
        command: main.py, with --resume.
        source: name and folder of the run that this one needs.
    """

    def __init__(self, command: Sequence[str], source: tuple[str, Path] | None = None):
        self.command, self.source, self.run = list(command), source, None

    def __call__(self) -> Ended:
        if self.source and not (self.source[1] / "summary.json").exists():
            return Ended(None, lost(self.source[0]))
        self.run = Process(self.command)
        before = signal.signal(signal.SIGTERM, lambda *_: self.run.stop())
        try:
            with _held_back():
                self.run.start()
            ended = self.run.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.run.asked and ended.status:
            sys.exit(128 + signal.SIGTERM)
        return ended

    def checkpoint(self) -> object:
        """Once the run has saved and left: what submitit is to queue again."""
        from submitit.helpers import DelayedSubmission

        if self.run is not None and self.run.process is not None:
            self.run.stop()
            with suppress(ChildProcessError):  # Popen.wait is under way above this handler and would wait for itself
                os.waitid(os.P_PID, self.run.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self.command, self.source))


def lost(source: str) -> str:
    """Of a run that cannot begin."""
    return f"not run: it waits for {source}, which failed"


@contextmanager
def _held_back() -> Iterator[None]:
    """A process begun within never gets the signals that Slurm may send to it as well as to the task."""
    numbers = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
