"""Interrupts a run at random moments, resumes it each time, and compares its end with that of a run left alone.

    python scripts/kill_test.py --kills 100                       SIGKILL
    python scripts/kill_test.py --kills 100 --signal TERM --hl
    python scripts/kill_test.py --kills 100 --program train_scratch.py

until as many interruptions as asked for have hit a live process
    start the run, or resume it after the first start;  wait a random while;  send the signal
    where the run got to its end first: compare it, and begin another
resume to the end;  compare

Runs are processes of their own, forked from this one so that they need not import PyTorch again, and signals are real
ones. Equal means bit for bit: every tensor and number in every file, pool and random generators included; only seconds
and memory may differ. Exit status 1 where anything differs.
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
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.entry import run_program
from datafree.run_folder import WRITTEN

import main as main_program
import train_scratch

PROGRAMS: dict[str, ModuleType] = {"main.py": main_program, "train_scratch.py": train_scratch}
SMALL = {
    "main.py": "--warmup 1 --kd_steps 2 --batch_size 8 --synthesis_batch_size 8 --g_steps 2 --nz 9 --ngf 4 --p_width 4",
    "train_scratch.py": "--model resnet8 --batch_size 512 --eval_every 2",
}
VARIES = ("seconds", "peak_memory", "metrics_bytes")  # what two equal runs may differ in: the last counts digits


def differences(a: Path, b: Path) -> list[str]:
    """Where two finished runs differ, one line each; empty where they are equal."""
    found = []
    names = {file.name for folder in (a, b) for file in folder.iterdir() if file.is_file() and file.name != ".lock"}
    for name in sorted(names - {"log.txt", "config.json"}):
        if not all((folder / name).is_file() for folder in (a, b)):
            found.append(f"{name} is in only one of them")
        elif name.endswith(".pth"):
            found += _unequal(name, *(torch.load(folder / name, weights_only=True) for folder in (a, b)))
        elif name == "summary.json":
            found += _unequal(name, *(json.loads((folder / name).read_text()) for folder in (a, b)))
        elif name == "metrics.csv":
            found += _unequal(name, *(list(csv.DictReader((folder / name).open(newline=""))) for folder in (a, b)))
        elif (a / name).read_bytes() != (b / name).read_bytes():
            found.append(f"{name} differs")
    return found


def _unequal(where: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [f"{where} differs"]
    if type(a) is type(b) and isinstance(a, dict):
        keys = [key for key in {**a, **b} if not str(key).startswith(VARIES)]
        return [line for key in keys for line in _unequal(f"{where}: {key}", a.get(key), b.get(key))]
    if type(a) is type(b) and isinstance(a, list | tuple) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in _unequal(f"{where}: {i}", *pair)]
    return [] if type(a) is type(b) and a == b else [f"{where} is {a!r} and {b!r}"]


def start(program: str, argv: list[str], output: Path) -> int:
    """Forks a process that runs the program, its terminal a file. Returns its id."""
    pid = os.fork()
    if pid:
        return pid
    terminal = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
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


def wait(pid: int) -> int:
    """The exit status; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Trial:
    """One program, many interruptions. ``tally`` counts what they met."""

    program: str
    flags: list[str]
    number: int  # of the signal
    root: Path
    moments: random.Random
    tally: Counter = field(default_factory=Counter)

    def begin(self, name: str) -> tuple[Path, list[str], Path]:
        """A new run root: run folder, command line, and the file that stands in for the terminal."""
        root = self.root / name
        root.mkdir(parents=True)
        argv = [*self.flags, "--run_root", str(root / "run")]
        argv += ["--output", str(root / "teacher.pth")] * (self.program == "train_scratch.py")
        return root / "run", argv, root / "terminal.txt"

    def left_alone(self) -> tuple[Path, float, float]:
        """The run to compare with; how long it took to begin, and a round."""
        root, argv, terminal = self.begin("alone")
        before = time.perf_counter()
        status = wait(start(self.program, argv, terminal))
        seconds = time.perf_counter() - before
        if status != 0:
            raise SystemExit(terminal.read_text())
        (folder,) = root.iterdir()
        rows = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
        in_rounds = sum(float(row[name]) for row in rows for name in row if name.startswith("seconds"))
        return folder, seconds - in_rounds, in_rounds / len(rows)

    def interrupted(self, name: str, wanted: int, longest: float) -> tuple[Path, int]:
        """A run interrupted up to ``wanted`` times, each time after at most ``longest`` seconds, then finished."""
        root, argv, terminal = self.begin(name)
        hits, status = 0, None
        while status != 0:
            pid = start(self.program, self.command(root, argv, first=status is None), terminal)
            if hits < wanted:
                time.sleep(self.moments.uniform(0, longest))
                os.kill(pid, self.number)
            status = wait(pid)
            if status != 0:
                self.check(status, terminal, root)
                hits += 1
        (folder,) = root.iterdir()
        return folder, hits

    def command(self, root: Path, argv: list[str], first: bool) -> list[str]:
        """The first command; then the same with --resume or, at random, --resume with the folder alone."""
        folders = list(root.iterdir()) if root.exists() else []
        if folders and (folders[0] / "config.json").exists() and self.moments.random() < 0.5:
            return ["--resume", str(folders[0])]
        return argv if first else [*argv, "--resume"]

    def check(self, status: int, terminal: Path, root: Path) -> None:
        """Raises SystemExit where the process left otherwise than an interruption may make it; counts how it did."""
        last_line = terminal.read_text().splitlines()[-1:] if terminal.exists() else []
        saved = status == 128 + self.number and last_line and re.search(r"go on: python \S+ --resume ", last_line[0])
        if not saved and status != -self.number and not (status == 130 and self.number == signal.SIGINT):
            raise SystemExit(f"left with status {status}:\n{terminal.read_text()}")
        self.tally["saved and left by itself"] += bool(saved)
        self.tally["before the first state was saved"] += not list(root.glob("*/last.pth"))
        unfinished = [f for name in WRITTEN for f in root.glob(f"*/.{name}.*")]
        self.tally["in the middle of writing a file"] += bool(unfinished)
        self.tally["after the last round"] += bool(list(root.glob("*/gan_reuse.pth")))


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="interruptions in all")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT", "USR1"))
    parser.add_argument("--program", default="main.py", choices=tuple(PROGRAMS))
    parser.add_argument("--hl", action="store_true", help="main.py with the hard loss")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="length of a run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    import torch.utils.tensorboard  # noqa: F401 (before any fork)

    flags = ["--epochs", str(args.rounds), *SMALL[args.program].split(), *["--hl"] * args.hl]
    with tempfile.TemporaryDirectory() as root:
        trial = Trial(args.program, flags, getattr(signal, f"SIG{args.signal}"), Path(root), random.Random(args.seed))
        alone, beginning, a_round = trial.left_alone()
        hits, runs, found = 0, 0, []
        while hits < args.kills:
            folder, more = trial.interrupted(f"run{runs}", args.kills - hits, beginning + 3 * a_round)
            hits, runs = hits + more, runs + 1
            found += differences(alone, folder)
    told = ", ".join(f"{count} {what}" for what, count in trial.tally.items() if count)
    print(f"{hits} SIG{args.signal} ({told}) in {runs} runs of {args.rounds} rounds: {len(found)} differences")
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
