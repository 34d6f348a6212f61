"""Runs of main.py in array jobs of Slurm, by way of submitit.

an array for the runs that wait for nothing; one for those that wait for these; ...        sbatch, all at once
an array begins when the one before it has ended (afterany), and of its tasks those whose own source is complete
a task: main.py --resume; before its time is over, or preempted, it saves, leaves, and is queued again   task.py
"""

import argparse
import getpass
import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import task as task_module
from task import Ended, Job, Task

from datafree.errors import UserError
from datafree.runs.stopping import Stopped, StopRequests

CLUSTER = "slurm"  # submitit's name of it
POLL_SECONDS, LOOK_SECONDS = 1.0, 30.0  # for results, and at Slurm's queue; chosen by us
DEFAULTS = {"time": 60, "signal": "USR2@300", "requeue": True}  # minutes; chosen by us: a longer run is queued again
MOST_REQUEUES = 1000  # for lack of time; chosen by us
OF_THE_PLAN = {"array", "dependency", "output", "error", "open_mode"}


def options(text: str) -> dict[str, Any]:
    """A type for ``add_argument``: ``"partition=gpu time=24:00:00 exclusive"``, sbatch's long options by name."""
    given = {}
    for word in shlex.split(text):
        name, equals, value = word.lstrip("-").partition("=")
        given[name.replace("-", "_")] = value if equals else True
    taken = sorted(OF_THE_PLAN.intersection(given))
    if taken:
        raise argparse.ArgumentTypeError(f"{', '.join(taken)} is for the plan to say")
    if str(given.get("signal", "USR2")).rpartition(":")[2].partition("@")[0] != "USR2":
        raise argparse.ArgumentTypeError("signal must be USR2@SECONDS: that is what the tasks listen for")
    if "time" in given:
        given["time"] = minutes(given["time"])
    return given


def minutes(text: str) -> int:
    """Of a time as sbatch takes it: minutes[:seconds], hours:minutes:seconds or days-hours[:minutes[:seconds]]."""
    days, dash, clock = str(text).rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        parts = ([] if dash or len(parts) == 3 else [0]) + parts
        hours, minute, second = parts + [0] * (3 - len(parts))
        return max(1, ((int(days) if dash else 0) * 24 + hours) * 60 + minute + math.ceil(second / 60))
    except ValueError:
        raise argparse.ArgumentTypeError(f"time={text} is no time as sbatch takes it") from None


def levels(jobs: Sequence[Job]) -> list[list[Job]]:
    """Those that wait for nothing, those that wait for one of these, and so on.

    Raises:
        ValueError: where one waits for what is not there.
    """
    found, left, known = [], list(jobs), {None}
    while left:
        found.append([job for job in left if job.after in known])
        if not found[-1]:
            raise ValueError(f"{left[0].name} waits for {left[0].after}, which never comes")
        left = [job for job in left if job.after not in known]
        known |= {job.name for job in found[-1]}
    return found


def sbatch_options(args: argparse.Namespace, after: str | None) -> dict[str, Any]:
    """Of an array that begins when job ``after`` has ended; --slurm wins over what we chose."""
    waits = {"dependency": f"afterany:{after}"} if after else {}
    return {"job_name": args.name} | DEFAULTS | (args.slurm or {}) | waits


def described(number: int, level: Sequence[Job], args: argparse.Namespace) -> str:
    """What array ``number`` is to sbatch, from 1; without Slurm and submitit."""
    at_once = f"%{min(args.jobs, len(level))}" if args.jobs else ""
    array = {"array": f"0-{len(level) - 1}{at_once}"} if len(level) > 1 else {}
    given = array | sbatch_options(args, f"<array {number - 1}>" if number > 1 else None)
    words = [f"--{name.replace('_', '-')}={value}".removesuffix("=True") for name, value in given.items()]
    return f"array {number}, {len(level)} tasks: sbatch {' '.join(words)}"


def run_on_cluster(jobs: Sequence[Job], args: argparse.Namespace) -> Iterator[tuple[Job, Ended]]:
    """Submits all, and yields each job as it has ended. A failure ends what waits for it and nothing else.

    Raises:
        UserError: without submitit or Slurm, where Slurm refuses, or where jobs of that name are still in its queue.
        Stopped: after a signal; what is in the queue stays there.
    """
    folders, executor, waiting, after = {job.name: job.folder for job in jobs}, open_executor(args), [], None
    for level in levels(jobs):
        if CLUSTER != "slurm":  # submitit's stand-ins know no dependency
            yield from ended(waiting, args.name)
        set_options(executor, args, after, len(level))
        tasks = [Task(job.command(), job.after and (job.after, folders[job.after])) for job in level]
        try:
            submitted = executor.submit_array(tasks)
        except RuntimeError as error:  # submitit's, with what sbatch said
            said = str(error).strip().splitlines() or ["nothing"]
            queued = sorted({task.job_id.split("_")[0] for _, task in waiting})
            remedy = "see --slurm, and sbatch --help" + (f"; before: scancel {' '.join(queued)}" if queued else "")
            raise UserError(f"Slurm refuses: {said[-1]}", remedy) from None
        after = submitted[0].job_id.split("_")[0]
        waiting += zip(level, submitted, strict=True)
        print(f"submitted: {len(level)} runs as job {after}", flush=True)
    yield from ended(waiting, args.name)


def open_executor(args: argparse.Namespace) -> Any:
    """submitit's, writing under the run root."""
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit", "pip install -r requirements-cluster.txt") from None
    if CLUSTER == "slurm":
        if not shutil.which("sbatch"):
            raise UserError("there is no Slurm here: no sbatch", "call this where jobs are submitted; see --dry_run")
        check_queue(args.name)
    cloudpickle.register_pickle_by_value(task_module)  # scripts/ is not on the path of a task
    folder = args.run_root / ".slurm" / args.name
    return submitit.AutoExecutor(folder, cluster=CLUSTER, slurm_max_num_timeout=MOST_REQUEUES)


def in_queue(name: str) -> set[str] | None:
    """Slurm's numbers of our jobs of that name that have not ended, array tasks as 12_0; None where it does not say."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}", f"--name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else set(done.stdout.split())


def check_queue(name: str) -> None:
    """Raises UserError where jobs of an earlier call are in the queue: two runs in one folder exclude each other."""
    found = " ".join(sorted({number.split("_")[0] for number in in_queue(name) or ()}))
    if found:
        raise UserError(f"jobs called {name} are in the queue: {found}", f"wait for them, or scancel {found}")


def set_options(executor: Any, args: argparse.Namespace, after: str | None, count: int) -> None:
    """Of the next array. All but the time, which submitit counts by, go to sbatch as they are."""
    given = sbatch_options(args, after)
    executor.update_parameters(
        slurm_time=given.pop("time"),
        slurm_array_parallelism=args.jobs or count,
        slurm_additional_parameters=given,
    )


class Departed:
    """Which tasks have left Slurm's queue: those absent in two looks, so that what they returned can still arrive."""

    def __init__(self, name: str):
        self.name, self.absent, self.looked = name, set(), time.monotonic()

    def __call__(self, tasks: set[str]) -> set[str]:
        if CLUSTER != "slurm" or time.monotonic() - self.looked < LOOK_SECONDS:
            return set()
        self.looked, listed, before = time.monotonic(), in_queue(self.name), self.absent
        self.absent = set() if listed is None else tasks - listed
        return before & self.absent


def ended(waiting: list[tuple[Job, Any]], name: str) -> Iterator[tuple[Job, Ended]]:
    """Each job of (job, submitit's job), taken from the list as it has ended. Raises Stopped after a signal."""
    departed = Departed(name)
    with StopRequests() as stop:
        while waiting and stop.received is None:
            gone = departed({task.job_id for _, task in waiting})
            for job, task in [(job, task) for job, task in waiting if task.job_id in gone or has_ended(task)]:
                waiting.remove((job, task))
                yield job, result(task)
            if waiting and stop.received is None:
                time.sleep(POLL_SECONDS)
    if stop.received is not None:
        left = " ".join(sorted({task.job_id.split("_")[0] for _, task in waiting}))
        what = f"stopped; the jobs stay in the queue (or: scancel {left})"
        raise Stopped(stop.received, f"{what}; when they have ended, the same command goes on from here")


def has_ended(task: Any) -> bool:
    """By what it returned; submitit would ask sacct, which many a Slurm does not have."""
    return task.paths.result_pickle.exists() if CLUSTER == "slurm" else task.done()


def result(task: Any) -> Ended:
    """What it returned; of one that returned nothing (cancelled, killed, an error of submitit's), where its log is."""
    with suppress(RuntimeError):  # submitit's
        if CLUSTER == "debug" or task.paths.result_pickle.exists():
            return task.result()
    return Ended(-1, f"ended from outside; see {task.paths.stderr}")
