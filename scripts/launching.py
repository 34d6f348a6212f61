"""Runs of main.py started by a script: one a slot at a time, each after the run that it waits for.

while runs are left
    into every free slot goes the first run whose predecessor has finished; main.py --resume goes on with what is there
    what has ended is reported or, by its status.json or its last word, counted as failed, as is what waits for it
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

from datafree.job import run_name
from datafree.runs.folder import read_status
from datafree.runs.stopping import Stopped, StopRequests
from main import command_line

POLL_SECONDS = 0.05
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
        folder: where its run is, or will be: see :func:`folder_of`.
        after: the name of the job that must have finished before; None where it waits for nothing.
    """

    name: str
    flags: Sequence[str]
    folder: Path
    after: str | None = None


def folder_of(flags: Sequence[str]) -> Path:
    """The run folder of main.py with these flags. Raises UserError for flags that it refuses."""
    _, values, method = command_line(list(flags))
    return values.run_root / run_name(values, method)


class Queue:
    """The jobs of :func:`run_queue`: waiting, under way by slot, done, failed with what they said."""

    def __init__(self, jobs: Sequence[Job], program: Path, slots: Sequence[Mapping[str, str]]):
        self.waiting, self.done, self.failed = list(jobs), set(), {}
        self.program, self.slots = program, slots
        self.running: dict[int, tuple[Job, subprocess.Popen, IO[str]]] = {}

    def begin(self) -> None:
        """Gives up what waits for a failed job; puts into each free slot the first job that waits for nothing more."""
        while lost := [job for job in self.waiting if job.after in self.failed]:
            for job in lost:
                self.waiting.remove(job)
                self.failed[job.name] = f"not run: it waits for {job.after}, which failed"
        for slot, environment in enumerate(self.slots):
            job = next((job for job in self.waiting if job.after is None or job.after in self.done), None)
            if slot not in self.running and job is not None:
                self.waiting.remove(job)
                self.running[slot] = job, *self._start(job, environment)
        if self.waiting and not self.running:
            raise ValueError(f"{self.waiting[0].name} waits for {self.waiting[0].after}, which never comes")

    def _start(self, job: Job, environment: Mapping[str, str]) -> tuple[subprocess.Popen, IO[str]]:
        """Apart from the terminal's signals, so that each reaches it once; with it, the file of what it says wrong."""
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read when it has ended)
        command, environment = (
            [sys.executable, str(self.program), *job.flags, "--resume"],
            {**os.environ, **environment},
        )
        output = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors}
        return subprocess.Popen(command, env=environment, **output, **APART), errors

    def take_in(self, finished: Callable[[Job, Path], None]) -> None:
        """What has ended since."""
        for slot, (job, process, errors) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[slot]
            errors.seek(0)
            said = errors.read().strip().splitlines()
            errors.close()
            if process.returncode == 0:
                self.done.add(job.name)
                finished(job, job.folder)
            else:
                self.failed[job.name] = f"{shlex.join(process.args[1:])}: {said[-1] if said else self._status(job)}"

    def _status(self, job: Job) -> str:
        """Of a process that left without a word."""
        status = read_status(job.folder)
        return status.get("message") or f"ended in epoch {status.get('epoch', 0)}, {status.get('state', 'not begun')}"

    def interrupt(self) -> None:
        """Asks all that is under way to save and leave."""
        for _, process, _ in self.running.values():
            if process.poll() is None:
                process.send_signal(INTERRUPT)


def run_queue(
    jobs: Sequence[Job],
    program: Path,
    slots: Sequence[Mapping[str, str]],
    finished: Callable[[Job, Path], None],
    keep_going: bool = False,
) -> dict[str, str]:
    """Runs the jobs, in order where they do not wait; calls ``finished`` with each job that ended and its folder.

    Args:
        jobs: each name once.
        program: the path of main.py.
        slots: one for each run at a time: variables set for the runs in it (which GPU they see, say).
        finished: called as soon as a run has ended well.
        keep_going: whether a failure ends only what waits for it; else nothing is begun after one.

    Returns:
        The failed jobs' names, with what they said; with keep_going also those given up with what they waited for.

    Raises:
        Stopped: after a signal, once the runs under way have left.
    """
    queue, told = Queue(jobs, program, slots), False
    with StopRequests() as stop:
        try:
            while queue.running or queue.waiting:
                if stop.received and not told:
                    queue.interrupt()
                    told = True
                if not stop.received and (keep_going or not queue.failed):
                    queue.begin()
                elif not queue.running:
                    break
                time.sleep(POLL_SECONDS)
                queue.take_in(finished)
        finally:  # anything is under way here only after a second signal or an error
            queue.interrupt()
            for _, process, _ in queue.running.values():
                process.wait()
    if stop.received:
        raise Stopped(stop.received, "stopped; the same command goes on from here")
    return queue.failed
