"""Interrupts a run at random moments, resumes it each time, and compares its end with that of a run left alone.

    python scripts/kill_test.py --kills 100                                                       SIGKILL
    python scripts/kill_test.py --kills 100 --signal TERM --save_every 3 --ep_steps 4 --kd_steps 2 --hl
    python scripts/kill_test.py --kills 100 --program train_scratch.py
    python scripts/kill_test.py --kills 20 --processes 2                            the first, the second, both, in turn

until as many interruptions as asked for have hit a live process
    start the run, or resume it after the first start;  wait a random while;  send the signal
    where the run got to its end first: compare it, and begin another
resume to the end;  compare

Runs are processes of their own, forked from this one so that they need not import PyTorch again, and signals are real
ones. Equal means bit for bit: every tensor and number in every file, pool and random generators included; only seconds
and memory may differ. Flags that are not this script's are the program's. Exit status 1 where anything differs.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main as main_program
import train_scratch
from datafree.cli.program import run_program
from datafree.runs.folder import WRITTEN, read_status
from datafree.runs.stopping import SIGNALS

PROGRAMS = {"main.py": main_program, "train_scratch.py": train_scratch}
SMALL = {
    "main.py": "--warmup 1 --kd_steps 2 --batch_size 8 --synthesis_batch_size 8 --g_steps 2 --nz 9 --ngf 4",
    "train_scratch.py": "--model resnet8 --batch_size 512 --eval_every 2",
}
VARIES = ("seconds", "peak_memory", "process")  # what two equal runs may differ in
STORES: list[Any] = []  # the newest
PATIENCE = 30  # seconds that a process may take to notice that another is gone; chosen by us


def differences(a: Path, b: Path) -> list[str]:
    """Where two finished runs differ, one line each; empty where they are equal."""
    found = []
    names = {file.name for folder in (a, b) for file in folder.iterdir() if file.is_file() and file.name != ".lock"}
    for name in sorted(names - {"log.txt", "config.json"}):
        files = a / name, b / name
        if not all(file.is_file() for file in files):
            found.append(f"{name} is in only one of them")
        elif name.endswith((".pth", ".json", ".csv")):
            found += _unequal(name, *map(_content, files))
        elif files[0].read_bytes() != files[1].read_bytes():
            found.append(f"{name} differs")
    return found


def _content(file: Path) -> Any:
    if file.suffix == ".pth":
        return torch.load(file, weights_only=True)
    return json.loads(file.read_text()) if file.suffix == ".json" else list(csv.DictReader(file.open(newline="")))


def _unequal(where: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [f"{where} differs"]
    if type(a) is type(b) and isinstance(a, dict):
        keys = [key for key in {**a, **b} if not str(key).startswith(VARIES)]
        return [line for key in keys for line in _unequal(f"{where}: {key}", a.get(key), b.get(key))]
    if type(a) is type(b) and isinstance(a, list | tuple) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in _unequal(f"{where}: {i}", *pair)]
    return [] if type(a) is type(b) and a == b else [f"{where} is {a!r} and {b!r}"]


def start(program: str, argv: list[str], output: Path, processes: int = 1) -> list[int]:
    """Forks processes that run the program together, their terminal a file. Returns their ids.

    As torchrun, this process keeps the store by which several meet.
    """
    there = {}
    if processes > 1:
        STORES[:] = [torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(STORES[0].port), "WORLD_SIZE": str(processes)}
        there["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    gate, opened = os.pipe()  # none begins before all are forked: the store's thread may hold a lock meanwhile
    pids = [fork(program, argv, output, {**there, "RANK": str(rank)}, (gate, opened)) for rank in range(processes)]
    os.close(gate)
    os.close(opened)
    return pids


def fork(program: str, argv: list[str], output: Path, environment: dict[str, str], gate: tuple[int, int]) -> int:
    """One of them, which begins when the other end of the gate, a pipe, is closed everywhere."""
    pid = os.fork()
    if pid:
        return pid
    os.close(gate[1])
    os.read(gate[0], 1)
    os.environ.update(environment)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # as a program begins, whatever this process listens for
    terminal = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    sys.stdout = sys.stderr = open(terminal, "w", buffering=1)  # noqa: SIM115 (as long as the process lives)
    sys.argv, status = [program, *argv], 0
    try:
        torch.set_num_threads(1)
        run_program(PROGRAMS[program].main)
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pids: list[int], joined: Callable[[], bool] = lambda: True) -> list[int]:
    """The exit statuses, those that are not 0 first; negative: the signal that ended it.

    Where one has ended otherwise than well, the others have to notice; those that had not met yet are ended, as
    torchrun does. Raises SystemExit where one does not notice.
    """
    left, statuses, since = list(pids), [], None
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                statuses.append(os.waitstatus_to_exitcode(status))
                since = since or (time.perf_counter() if statuses[-1] else None)
        if left and since and (time.perf_counter() - since > PATIENCE or not joined()):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            if joined():
                raise SystemExit(f"{len(left)} processes did not notice for {PATIENCE} s that another was gone")
        time.sleep(0.002)
    return sorted(statuses, key=lambda status: status == 0)


@dataclass
class Trial:
    """One program, many interruptions. ``tally`` counts what they met, ``hits`` all of them."""

    program: str
    flags: list[str]
    number: int  # of the signal
    root: Path
    moments: random.Random
    processes: int = 1
    hits: int = 0
    tally: Counter = field(default_factory=Counter)

    @property
    def targets(self) -> range:
        """The processes that the next signal is for: each alone, then all, in turn."""
        turn = self.hits % (self.processes + 1)
        return range(self.processes) if turn == self.processes else range(turn, turn + 1)

    def begin(self, name: str) -> tuple[Path, list[str], Path]:
        """A new run root, with the command line and the file that stands in for the terminal."""
        root = self.root / name
        root.mkdir(parents=True)
        argv = [*self.flags, "--run_root", str(root / "run")]
        argv += ["--output", str(root / "teacher.pth")] * (self.program == "train_scratch.py")
        return root / "run", argv, root / "terminal.txt"

    def left_alone(self) -> tuple[Path, float]:
        """The run to compare with, and how long it took."""
        root, argv, terminal = self.begin("alone")
        before = time.perf_counter()
        if any(wait(start(self.program, argv, terminal, self.processes))):
            raise SystemExit(terminal.read_text())
        (folder,) = root.iterdir()
        return folder, time.perf_counter() - before

    def interrupted(self, name: str, wanted: int, longest: float) -> tuple[Path, int]:
        """A run interrupted up to ``wanted`` times, each time after at most ``longest`` seconds, then finished."""
        root, argv, terminal = self.begin(name)
        before, status = self.hits, None
        while status != 0:
            command = self.command(root, argv, first=status is None)
            terminal.write_text("")  # of this start alone
            pids = start(self.program, command, terminal, self.processes)
            if self.hits - before < wanted:
                time.sleep(self.moments.uniform(0, longest))
                for process in self.targets:
                    os.kill(pids[process], self.number)
            began = list(root.glob("*/status.json"))
            status, *others = wait(pids, lambda began=began: bool(began))
            if status != 0:
                self.check(status, others, root, terminal)
                who = "all" if len(self.targets) > 1 else f"process {self.targets[0]}"
                self.tally[f"to {who}"] += self.processes > 1
                self.hits += 1
        (folder,) = root.iterdir()
        return folder, self.hits - before

    def command(self, root: Path, argv: list[str], first: bool) -> list[str]:
        """The first command; then the same with --resume or, at random, --resume with the folder alone."""
        if any(root.glob("*/config.json")) and self.moments.random() < 0.5:
            return ["--resume", str(next(root.iterdir()))]
        return argv if first else [*argv, "--resume"]

    def check(self, status: int, others: list[int], root: Path, terminal: Path) -> None:
        """Raises SystemExit where a process left otherwise than an interruption may make it; counts how it did."""
        state = next((read_status(folder).get("state") for folder in root.glob("*")), None)
        stopped = status == 128 + self.number and state == "stopped"
        at_once = {-self.number, 130} if self.number == signal.SIGINT else {-self.number}  # no handler yet, or none
        lost = {2} if self.processes > 1 else set()  # the other is gone
        fitting = {0, 128 + self.number, *at_once, *lost, -signal.SIGKILL}
        if not (stopped or {status, *others} & at_once) or not {status, *others} <= fitting:
            raise SystemExit(f"left with status {[status, *others]}, {state}:\n{terminal.read_text()}")
        errors = re.findall("^error: ", terminal.read_text(), re.MULTILINE)
        if {status, *others} & lost and len(errors) != 1:
            raise SystemExit(f"{len(errors)} lines said that another was gone:\n{terminal.read_text()}")
        self.tally["noticed by the other"] += bool({status, *others} & lost)
        self.tally["stopped in good order"] += stopped
        self.tally["before the first state was saved"] += not any(root.glob("*/last.pth"))
        self.tally["in the middle of writing a file"] += any(any(root.glob(f"*/.{name}.*")) for name in WRITTEN)
        self.tally["after the last epoch"] += any(root.glob("*/gan_reuse.pth"))


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="interruptions in all")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT", "USR1"))
    parser.add_argument("--program", default="main.py", choices=tuple(PROGRAMS))
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="length of a run")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that are one run")
    parser.add_argument("--moments", type=int, default=0, metavar="SEED", help="of the moments")
    return parser.parse_known_args(argv)


def main(argv: list[str]) -> int:
    args, more = arguments(argv)
    if not hasattr(os, "fork"):
        raise SystemExit("error: this system has no fork — run it on Linux or macOS")
    import torch.utils.tensorboard  # noqa: F401 (before any fork)

    flags = ["--epochs", str(args.epochs), *SMALL[args.program].split(), *more]
    with tempfile.TemporaryDirectory() as root:
        moments = random.Random(args.moments)
        number = getattr(signal, f"SIG{args.signal}")
        trial = Trial(args.program, flags, number, Path(root), moments, args.processes)
        alone, seconds = trial.left_alone()
        hits, runs, found = 0, 0, []
        while hits < args.kills:
            folder, more_hits = trial.interrupted(f"run{runs}", args.kills - hits, seconds / 2)
            hits, runs = hits + more_hits, runs + 1
            found += differences(alone, folder)
    told = ", ".join(f"{count} {what}" for what, count in trial.tally.items() if count)
    print(f"{hits} SIG{args.signal} ({told}) in {runs} runs of {args.epochs} epochs: {len(found)} differences")
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
