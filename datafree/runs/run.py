"""The bookkeeping of a loop over epochs: how far it is, what it records, when it saves, how it stops and goes on.

for epoch in run.epochs()
    ... run.lap("synthesis", counts) ...
    run.record(row)             a row of metrics.csv
    run.save()                  where it is due; raises Stopped where a signal asked for an end
"""

import copy
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import configuration, processes
from ..configuration import knob
from ..data.pool import ImagePool
from ..engine.costs import MADE, passes
from ..engine.device import Compute, peak_memory_mb
from ..engine.evaluation import Score
from ..engine.readings import Readings, Stopwatch
from ..errors import check_weights_finite, not_finite_in
from .environment import environment
from .folder import RunFolder
from .silent import SilentFolder
from .snapshot import Snapshot, Stateful
from .stopping import Stopped, StopRequests
from .writer import Writer


@dataclass(frozen=True)
class SavingConfig(configuration.Config):
    """When the state is saved."""

    save_every: str = knob(
        "1",
        "epochs, or seconds as in 60s, between saves of the state",
        check=lambda text: period(text),
        unit="N|Ns",
        free=True,
    )
    save_async: bool = knob(False, "write a state while the run goes on: for slow disks and short epochs", free=True)


def saves_behind(save_async: bool) -> bool:
    """Whether a run goes on while its state is written: several processes wait for each other."""
    return save_async and processes.size() == 1


def period(text: str) -> tuple[float, bool]:
    """``"5"`` -> (5, False), epochs; ``"30s"`` -> (30, True), seconds. Raises ValueError for anything else."""
    digits, seconds = text.removesuffix("s"), text.endswith("s")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError(f"{text!r} is neither a number of epochs, as 5, nor of seconds, as 30s")
    return int(digits), seconds


@dataclass
class Progress:
    """What is true after ``epoch`` epochs, apart from the state of the networks.

    Attributes:
        epoch: done.
        generator_loss: one value a generator iteration.
        score, best: of the newest and of the best network.
        seconds: spent so far, by purpose.
        costs: passes through networks so far, by purpose and name; see ``engine.costs``.
        seconds_total: spent by all processes so far.
        planning_seconds: spent on a plan before the run began.
    """

    epoch: int = 0
    generator_loss: list[float] = field(default_factory=list)
    score: Score = Score()
    best: Score = Score()
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds_total: float = 0.0
    planning_seconds: float = 0.0

    def passes(self, network: str = "teacher") -> int:
        """In all, but for evaluation."""
        return sum(passes(counts, network) for purpose, counts in self.costs.items() if purpose != "evaluation")

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state | {"score": Score(**state["score"]), "best": Score(**state["best"])})


class Run:
    """One run in its folder, from where it was left.

    Args:
        folder: opened.
        snapshot: what is saved and restored; gets the progress as a part of its own.
        epochs: in all.
        compute: device and precision.
        save_every: see SavingConfig.
        stop: signals.
        go_on: what to do to go on with a stopped run.
        writer: writes states; left after the run.
    """

    def __init__(
        self,
        folder: RunFolder | SilentFolder,
        snapshot: Snapshot,
        epochs: int,
        compute: Compute,
        save_every: str = "1",
        stop: StopRequests | None = None,
        go_on: str = "",
        writer: Writer | None = None,
    ):
        self.folder, self.snapshot, self.total, self.compute = folder, snapshot, epochs, compute
        self.writer = writer or Writer(behind=False)
        self.stop, self.go_on, self.every = stop or StopRequests(), go_on, period(save_every)
        self.progress = Progress()
        snapshot.parts["progress"] = self.progress
        for line in snapshot.load() if folder.resumed else ():
            folder.log(line)
        self._passes = self.progress.passes()
        folder.start(self.progress.epoch, self.progress.seconds_total)
        folder.status("running", epoch=self.progress.epoch, epochs=epochs)
        self._files: dict[str, Any] = {}  # to be written with the next save
        self._saved = self.progress.epoch, folder.seconds()
        self._clock = Stopwatch(compute.device)

    def epochs(self) -> Iterator[int]:
        """Those still to do, from 1."""
        for epoch in self.folder.epochs(self.total, self.progress.epoch):
            self._clock = Stopwatch(self.compute.device)
            yield epoch
            if self.progress.epoch != epoch:
                raise RuntimeError(f"epoch {epoch} was not recorded")

    def checked(self, epoch: int) -> AbstractContextManager[None]:
        """Within, a number that became NaN ends the run in one line that says where."""
        return not_finite_in(f"epoch {epoch}")

    def lap(self, purpose: str, counts: Mapping[str, int] | None = None) -> None:
        """Ends a stretch of that purpose, in which so much was counted; its seconds are a column of their own."""
        self._clock.lap(f"seconds_{purpose}")
        self.spend(purpose, counts or {})

    def spend(self, purpose: str, counts: Mapping[str, int]) -> None:
        """So much was counted for that purpose, whatever time it took."""
        spent = self.progress.costs.setdefault(purpose, {})
        for name, count in counts.items():
            spent[name] = spent.get(name, 0) + count

    def terms(self, epoch: int, readings: Readings, networks: Mapping[str, nn.Module], steps: int) -> dict[str, float]:
        """The means of what was reported. Raises UserError where one, or a weight, became NaN or infinite."""
        with self.checked(epoch):  # nothing before waits for the device
            means = readings.means()
            check_weights_finite(networks, steps)
        self.progress.generator_loss += readings.series.get("loss_generator", [])
        return means

    def scored(self, score: Score, contents: dict[str, Any]) -> None:
        """Takes a score, and what to save of the network that has it."""
        state = {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in contents["state_dict"].items()
        }
        contents = contents | {"state_dict": state, "accuracy": score.accuracy, "agreement": score.agreement}
        self._files["student_last.pth"] = contents
        if score.beats(self.progress.best):
            self.progress.best = score
            self._files["best.pth"] = contents
        self.progress.score = score

    def record(self, epoch: int, row: dict[str, Any]) -> None:
        """The end of an epoch: its row, its seconds, its line."""
        seconds = self._clock.seconds()
        for name, value in seconds.items():
            self.progress.seconds[name] = self.progress.seconds.get(name, 0.0) + value
        self.progress.epoch = epoch
        passes, self._passes = self._passes, self.progress.passes()
        if self._passes:
            row = row | {"teacher_passes": self._passes - passes}
        row = {"epoch": epoch} | row | seconds
        self.folder.record(row, epoch_line(row, self.total))

    def save(self) -> None:
        """The state, where it is due. Raises Stopped after a signal, once it is saved."""
        progress = self.progress
        (count, in_seconds), (epoch, then) = self.every, self._saved
        due = self.folder.seconds() - then >= count if in_seconds else progress.epoch - epoch >= count
        due, stopped = processes.largest(processes.first() and due, self.stop.received or 0)
        last = progress.epoch == self.total
        if due or stopped or last:
            self.writer.wait()
            progress.seconds_total = self.folder.seconds()
            save = self.snapshot.taken() if self.writer.behind else self.snapshot.save
            status = partial(self.folder.status, "stopped" if stopped else "running", epoch=progress.epoch)
            self.writer.do(partial(self._write, self._files, save, status))
            self._files = {}
            self._saved = progress.epoch, self.folder.seconds()
        if stopped or last:
            self.writer.wait()
        if stopped:
            processes.stopped()
            raise Stopped(stopped, f"stopped after epoch {progress.epoch}; go on: {self.go_on}")

    def _write(self, contents: Mapping[str, Any], save: Callable[[], None], status: Callable[[], None]) -> None:
        for name, content in contents.items():
            self.folder.save(name, content)
        save()
        status()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """summary.json, from what was recorded and from what is given."""
        progress = self.progress
        told = {"accuracy_last": progress.score.accuracy, "accuracy_best": progress.best.accuracy}
        told |= {"epochs": progress.epoch, **progress.seconds, "peak_memory_mb": peak_memory_mb(self.compute.device)}
        costs = {purpose: counts for purpose, counts in progress.costs.items() if counts}
        if costs:
            made = sum(counts.get(MADE, 0) for counts in costs.values())
            told |= {f"{name}_passes": progress.passes(name) for name in ("teacher", "student", "generator")}
            told |= {MADE: made, "costs": costs}
        self.folder.finish(told | dict(summary))


@contextmanager
def opened(
    path: Path,
    values: Namespace,
    config: Mapping[str, Any],
    remarks: Iterable[str],
    parts: Mapping[str, Stateful],
    compute: Compute,
    pool: ImagePool | None = None,
) -> Iterator[Run | None]:
    """The run in its folder, which is locked meanwhile; None where it has come to its end already.

    Args:
        path: the folder.
        values: the flags of MachineConfig, and ``epochs``.
        config: what config.json says beside the environment.
        remarks: the first lines of its log.
        parts: what is saved and restored.
        compute: device and precision.
        pool: likewise, where there is one.

    Raises:
        UserError: where the folder cannot be used, or what is in it does not fit.
    """
    processes.wait_for_all()  # to see the folder as it is, before it is written to
    how = path, values.overwrite, bool(values.resume)
    with (
        RunFolder(*how) if processes.first() else SilentFolder(path, how[2]) as folder,
        StopRequests() as stop,
        processes.watched(),
        Writer(saves_behind(values.save_async)) as writer,
    ):
        if processes.agreed(folder.complete()):
            yield None
            return
        processes.begun()
        folder.save_config({**config, "environment": environment(f"{compute.device}, {compute.precision}")})
        for line in remarks:
            folder.log(line)
        if values.save_async and not writer.behind:
            folder.log("warning: --save_async is for one process: several wait until all have saved")
        program = sys.argv[0] if Path(sys.argv[0]).name == config["program"] else config["program"]
        by_hand = shlex.join([*processes.starter(), program, "--resume", str(path)])
        go_on = by_hand if config["program"].endswith(".py") else "call it again with resume=True"
        yield Run(folder, Snapshot(path, parts, pool), values.epochs, compute, values.save_every, stop, go_on, writer)


def epoch_line(row: Mapping[str, Any], total: int) -> str:
    """One line for people: epoch, losses without their prefix, accuracy, seconds."""
    parts = [f"epoch {row['epoch']:>{len(str(total))}}/{total}"]
    parts += [f"{key.removeprefix('loss_')} {row[key]:.3f}" for key in row if key.startswith("loss")]
    parts += [f"{key} {row[key]:.2f} %" for key in ("accuracy", "agreement") if row.get(key) is not None]
    seconds = sum(value for key, value in row.items() if key.startswith("seconds"))
    return "  ".join([*parts, f"{seconds:.1f} s"])
