"""Runs of main.py started by a script: one a slot at a time, each after the run that it waits for.

while runs are left
    into every free slot goes the first run whose predecessor has finished; main.py --resume goes on with what is there
    what has ended is reported or, with the last line of its errors, counted as failed, as is what waits for it
a signal is passed on once to the runs under way; they save and leave, and so does the queue
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .stopping import Stopped, StopRequests

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        name: by which messages and other jobs call it.
        tag: of its folder.
        flags: of main.py, without tag and run root.
        after: the name of the job that must have finished before; None where it waits for nothing.
    """

    name: str
    tag: str
    flags: Sequence[str]
    after: str | None = None

    def arguments(self, run_root: Path) -> list[str]:
        """All flags of the command, apart from --resume."""
        return [*self.flags, "--tag", self.tag, "--run_root", str(run_root)]


class Launched:
    """A process of a job, apart from the terminal's signals, so that each reaches it once.

    Args:
        job: what to run.
        program: the path of main.py.
        run_root: where its folder goes.
        environment: variables set for it beside ours.
    """

    def __init__(self, job: Job, program: Path, run_root: Path, environment: Mapping[str, str]):
        self.job, self.command = job, [str(program), *job.arguments(run_root), "--resume"]
        self._output, self._errors = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *self.command],
            stdout=self._output,
            stderr=self._errors,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Asks it to save and leave; a second time, to leave at once."""
        if self.status() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        self._process.wait()

    def folder(self) -> Path:
        """The run folder, of a process that ended well."""
        return folder_named_in(_text(self._output))

    def failure(self) -> str:
        """The command and the last line of what it said on stderr, of a process that did not."""
        last = (_text(self._errors).strip().splitlines() or [f"exit status {self.status()}"])[-1]
        return f"{shlex.join(self.command)}: {last}"


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def folder_named_in(output: str) -> Path:
    """The run folder in main.py's last line: ``finished: ...; FOLDER`` or ``FOLDER is complete: ...``."""
    line = output.strip().splitlines()[-1]
    return Path(line.split("; ", 1)[1] if line.startswith("finished: ") else line.rsplit(" is complete: ", 1)[0])


class Queue:
    """The jobs of :func:`run_queue`: waiting, under way by slot, done, failed with what they said."""

    def __init__(self, jobs: Sequence[Job]):
        self.waiting, self.done, self.failed = list(jobs), set(), {}
        self.running: dict[int, Launched] = {}

    def begin(self, program: Path, run_root: Path, slots: Sequence[Mapping[str, str]]) -> None:
        """Gives up what waits for a failed job; puts into each free slot the first job that waits for nothing more."""
        while lost := [job for job in self.waiting if job.after in self.failed]:
            for job in lost:
                self.waiting.remove(job)
                self.failed[job.name] = f"not run: it waits for {job.after}, which failed"
        for slot, environment in enumerate(slots):
            job = next((job for job in self.waiting if job.after is None or job.after in self.done), None)
            if slot not in self.running and job is not None:
                self.waiting.remove(job)
                self.running[slot] = Launched(job, program, run_root, environment)
        if self.waiting and not self.running:
            raise ValueError(f"{self.waiting[0].name} waits for {self.waiting[0].after}, which never comes")

    def take_in(self, finished: Callable[[Job, Path], None]) -> None:
        """What has ended since."""
        ended = {slot: launched for slot, launched in self.running.items() if launched.status() is not None}
        for slot, launched in ended.items():
            del self.running[slot]
            if launched.status() == 0:
                self.done.add(launched.job.name)
                finished(launched.job, launched.folder())
            else:
                self.failed[launched.job.name] = launched.failure()

    def interrupt(self) -> None:
        """Asks all that is under way to leave."""
        for launched in self.running.values():
            launched.interrupt()


def run_queue(
    jobs: Sequence[Job],
    program: Path,
    run_root: Path,
    slots: Sequence[Mapping[str, str]],
    finished: Callable[[Job, Path], None],
    keep_going: bool = False,
) -> dict[str, str]:
    """Runs the jobs, in order where they do not wait; calls ``finished`` with each job that ended and its folder.

    Args:
        jobs: each name once.
        program: the path of main.py.
        run_root: where run folders are made.
        slots: one for each run at a time: variables set for the runs in it (which GPU they see, say).
        finished: called as soon as a run has ended well.
        keep_going: whether a failure ends only what waits for it; else nothing is begun after one.

    Returns:
        The failed jobs' names, with what they said; with keep_going also those given up with what they waited for.

    Raises:
        Stopped: after a signal, once the runs under way have left.
    """
    queue, told = Queue(jobs), False
    with StopRequests() as stop:
        try:
            while queue.running or queue.waiting:
                if stop.received and not told:
                    queue.interrupt()
                    told = True
                if not stop.received and (keep_going or not queue.failed):
                    queue.begin(program, run_root, slots)
                elif not queue.running:
                    break
                time.sleep(POLL_SECONDS)
                queue.take_in(finished)
        finally:  # anything is under way here only after a second signal or an error
            queue.interrupt()
            for launched in queue.running.values():
                launched.wait()
    if stop.received:
        raise Stopped(stop.received, "stopped; the same command goes on from here")
    return queue.failed
