"""Runs of main.py planned by a script, and who runs them: this machine, or Slurm (cluster.py).

while runs are left
    into every free slot goes the first run whose predecessor has finished; main.py --resume goes on with what is there
    what has ended is reported or, by its status.json or its last word, counted as failed, as is what waits for it
a signal is passed on once to the runs under way; they save and leave, and so does the script
"""

import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import cluster
from task import Ended, Job, Process, lost

import main
from datafree.cli.parser import Parser, number
from datafree.data.folder_images import usable_processors
from datafree.errors import UserError
from datafree.job import run_name
from datafree.runs.folder import read_status
from datafree.runs.stopping import Stopped, StopRequests

LISTEN_SECONDS = 1.0  # Windows tells of no signal during a wait without an end


def folder_of(flags: Sequence[str]) -> Path:
    """The run folder of main.py with these flags. Raises UserError for flags that it refuses."""
    _, values, method = main.command_line(list(flags))
    return values.run_root / run_name(values, method)


def add_flags(parser: Parser, at_once: int | None = None) -> None:
    """What every script with a plan is told about it; ``at_once``: runs at a time here, by default; None: one a GPU."""
    default = f"default: {at_once or 'one a GPU; 1 without'}; in Slurm: as many as it grants"
    jobs = f"runs at a time, dealt out to the GPUs in turn ({default})"
    options = "of sbatch, for --executor slurm: 'partition=gpu time=24:00:00 gpus_per_node=1'"
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], metavar="N", help="one run each")
    parser.add_argument("--run_root", type=Path, default=Path("run"), metavar="DIR", help="where run folders are made")
    parser.add_argument("--jobs", type=number(int, 1), metavar="N", help=jobs)
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="who runs them")
    parser.add_argument("--slurm", type=cluster.options, metavar="'KEY=VALUE ...'", help=options)
    parser.add_argument("--dry_run", action="store_true", help="print the plan, and stop")
    parser.set_defaults(at_once=at_once)


def run_jobs(
    jobs: Sequence[Job], args: Namespace, finished: Callable[[Job], None], keep_going: bool = False
) -> dict[str, str]:
    """Runs the jobs, in order where they do not wait; calls ``finished`` with each job as soon as it has ended well.

    Args:
        jobs: each name once.
        args: of :func:`add_flags`, and name.
        keep_going: whether a failure ends only what waits for it; else nothing is begun here after one. Slurm has all
            jobs by then, and always keeps going.

    Returns:
        The failed jobs' names, with what they said; with keep_going also those given up with what they waited for.

    Raises:
        Stopped: after a signal; here once the runs under way have left, in Slurm they stay.
        UserError: where Slurm cannot be used.
    """
    if args.executor == "slurm":
        ended = cluster.run_on_cluster(jobs, args)
    else:
        ended = run_here(jobs, slots(jobs, args), keep_going)
    failed = {}
    with closing(ended):
        for job, (status, said) in ended:
            if status == 0:
                finished(job)
            else:
                words = shlex.join(job.command()[1:])
                failed[job.name] = said if status is None else f"{words}: {said or last_state(job)}"
    return failed


def last_state(job: Job) -> str:
    """Of a run that left without a word."""
    status = read_status(job.folder)
    return status.get("message") or f"ended in epoch {status.get('epoch', 0)}, {status.get('state', 'not begun')}"


def run_here(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], keep_going: bool) -> Iterator[tuple[Job, Ended]]:
    """Each job as it has ended; one at a time in each slot, with the variables that are the slot."""
    cluster.levels(jobs)  # that each can come
    waiting, done, failed, free, busy = list(jobs), {None}, set(), list(slots), {}

    def stop_all(again: bool = False) -> None:
        for _, process, _ in busy.values():
            process.stop(again)

    def begin(job: Job) -> None:
        waiting.remove(job)
        slot = free.pop(0)
        process = Process(job.command(), slot)
        busy[pool.submit(process)] = job, process, slot
        if stop.received is not None:  # since the line above
            process.stop()

    with StopRequests(stop_all) as stop, ThreadPoolExecutor(len(slots)) as pool:
        try:
            while True:
                if stop.received is None and (keep_going or not failed):
                    for job in [job for job in waiting if job.after in done][: len(free)]:
                        begin(job)
                if not busy:
                    break
                for future in wait(busy, LISTEN_SECONDS, FIRST_COMPLETED).done:
                    job, _, slot = busy.pop(future)
                    free.append(slot)
                    (failed if future.result().status else done).add(job.name)
                    yield job, future.result()
        finally:  # anything is under way here only after a second signal or an error
            stop_all(again=True)
    if stop.received is not None:
        raise Stopped(stop.received, "stopped; the same command goes on from here")
    for job in waiting if keep_going else ():
        yield job, Ended(None, lost(job.after))


def slots(jobs: Sequence[Job], args: Namespace) -> list[dict[str, str]]:
    """One for each run at a time here: which GPU it sees, or how many threads it has where several share the CPU.

    Of GPUs nothing is said where a run names its device.
    """
    if args.slurm:
        raise UserError("--slurm is for --executor slurm", "give both")
    gpus = []
    if {main.command_line(list(job.flags))[1].device for job in jobs} <= {"auto", "cuda"}:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(index) for index in range(torch.cuda.device_count())]
        if visible is not None:
            gpus = visible.split(",")[: len(gpus)]
    at_once = args.jobs or args.at_once or max(1, len(gpus))
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(at_once)]
    share = {} if at_once == 1 else {"OMP_NUM_THREADS": str(max(1, usable_processors() // at_once))}
    return [{name: value for name, value in share.items() if name not in os.environ}] * at_once


def told(jobs: Sequence[Job], args: Namespace) -> list[str]:
    """The plan as text: each command with what it waits for and whether it is complete; for Slurm, in its arrays."""
    complete = {job.name for job in jobs if (job.folder / "summary.json").exists()}

    def line(job: Job) -> str:
        notes = ["complete"] * (job.name in complete) + [f"after {job.after}"] * bool(job.after)
        return shlex.join(["python", "main.py", *job.command()[2:]]) + (f"   # {', '.join(notes)}" if notes else "")

    if args.executor == "slurm":
        lines, at_once = [], args.jobs or "as many as Slurm grants"
        for number, level in enumerate(cluster.levels(jobs), 1):
            lines += [cluster.described(number, level, args)]
            lines += [f"  {index}: {line(job)}" for index, job in enumerate(level)]
    else:
        lines, at_once = list(map(line, jobs)), len(slots(jobs, args))
    return [*lines, "", f"{len(jobs)} runs, {len(complete)} of them complete; at a time: {at_once}"]
