"""How fast generator and student get somewhere, anew against reuse: rounds and seconds to given losses and accuracies.

A run reaches an accuracy in the first round, warm-up counted, whose student has at least it, and a loss in the first
round whose generator loss is at most it; seconds are those of synthesis and distillation up to the end of that round.
"""

import csv
import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from ..errors import UserError
from ..reporting.plots import STYLES, draw_mean_and_range, label_axes
from ..reporting.results import Cell, Task, collect, spread
from ..reporting.run_reader import mean_and_std, read_run
from ..reporting.tables import Table


@dataclass(frozen=True)
class Goal:
    """A value to be reached.

    Attributes:
        column: of metrics.csv.
        value: the threshold.
        falling: whether at most it, and not at least it, counts as reached.
    """

    column: str
    value: float
    falling: bool

    @property
    def reached(self) -> Callable[[float], bool]:
        return (lambda value: value <= self.value) if self.falling else (lambda value: value >= self.value)

    def __str__(self) -> str:
        return f"generator loss ≤ {self.value:g}" if self.falling else f"accuracy ≥ {self.value:g} %"


@dataclass(frozen=True)
class Reached:
    """How one cell's runs got to one goal.

    Attributes:
        rounds: of each run; None where it never got there.
        seconds: likewise.
    """

    label: str
    cell: Cell
    goal: Goal
    rounds: Sequence[int | None]
    seconds: Sequence[float | None]

    @property
    def not_reached(self) -> int:
        return sum(value is None for value in self.rounds)


def goals(accuracies: Sequence[float], losses: Sequence[float]) -> list[Goal]:
    """Accuracies (%) and generator losses, in the order given."""
    return [
        *(Goal("accuracy", value, falling=False) for value in accuracies),
        *(Goal("loss_generator", value, falling=True) for value in losses),
    ]


def read_cells(patterns: Mapping[str, str | Sequence[str]], root: Path = Path()) -> tuple[dict[str, Cell], list[str]]:
    """The finished runs behind each label, and notes on what is left out.

    Args:
        patterns: label to one or more patterns of run folders, as in ``run/anew-digits-*-seed?``.
        root: what patterns are relative to, unless absolute.

    Raises:
        UserError: where no label has a finished run, or one mixes methods, tasks or settings.
    """
    cells, notes = {}, []
    for label, wanted in patterns.items():
        wanted = [wanted] if isinstance(wanted, str) else wanted
        found = {root / name for pattern in wanted for name in glob.glob(pattern, root_dir=root)}
        folders = sorted(folder for folder in found if folder.is_dir())
        found, said = collect(map(read_run, folders))
        if len(found) > 1:
            mixed = "; ".join(f"{cell.label} on {cell.task}" for cell in found)
            raise UserError(f"{label!r} mixes what cannot be averaged: {mixed}", "narrow its patterns")
        notes += said
        if found and found[0].runs:
            cells[label] = found[0]
        else:
            notes.append(f"left out: {label}: no finished run at {', '.join(wanted)}")
    if not cells:
        raise UserError("no finished run at any of the patterns", "make the runs first, or name others")
    return cells, notes


def measure(cells: Mapping[str, Cell], wanted: Sequence[Goal]) -> list[Reached]:
    """Every goal of every cell; those in a column that no run of the cell has a value of are left out."""
    found = []
    for label, cell in cells.items():
        for goal in wanted:
            if any(value is not None for run in cell.runs for value in run.metrics[goal.column]):
                rounds = [run.first_round(goal.column, goal.reached) for run in cell.runs]
                seconds = [run.seconds_until(last) for run, last in zip(cell.runs, rounds, strict=True)]
                found.append(Reached(label, cell, goal, rounds, seconds))
    return found


def table(found: Sequence[Reached]) -> Table:
    """A row a cell and goal; means are over the runs that reached it, and the others are counted."""
    rows = [
        [
            *(each.label, str(each.goal), f"{len(each.rounds)}", f"{each.not_reached}"),
            *(_mean_of_reached(values) for values in (each.rounds, each.seconds)),
        ]
        for each in found
    ]
    header = ["runs", "goal", "n", "not reached", "rounds", "seconds"]
    return Table("Rounds and seconds to a goal, mean ± sample standard deviation over seeds", header, rows)


def _mean_of_reached(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    return mean_and_std(values, decimals=1) if present else "not reached"


def write_csv(found: Sequence[Reached], path: Path) -> None:
    """The table unrounded, a line a cell and goal; empty cells where nothing was reached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                *("label", "method", *Task._fields, "measure", "goal", "n", "not_reached"),
                *("rounds_mean", "rounds_std", "seconds_mean", "seconds_std"),
            ]
        )
        for each in found:
            numbers = [*spread(each.rounds)[:2], *spread(each.seconds)[:2]]
            what = [each.label, each.cell.method, *each.cell.task, each.goal.column, each.goal.value]
            writer.writerow([*what, len(each.rounds), each.not_reached, *numbers])


def draw(cells: Mapping[str, Cell], path: Path, wanted: Sequence[Goal] = ()) -> None:
    """A row a task: generator loss and accuracy over rounds, a line a method; goals as thin grey lines."""
    tasks = list(dict.fromkeys(cell.task for cell in cells.values()))
    methods = list(dict.fromkeys(cell.method for cell in cells.values()))
    size = (10, 0.5 + 2.9 * len(tasks))
    figure, rows = plt.subplots(len(tasks), 2, figsize=size, layout="constrained", squeeze=False)
    for task, (loss, accuracy) in zip(tasks, rows, strict=True):
        for cell in (cell for cell in cells.values() if cell.task == task):
            colour, style = STYLES[methods.index(cell.method) % len(STYLES)]
            label = f"{cell.method} (n = {len(cell.runs)})"
            for axes, column in ((loss, "loss_generator"), (accuracy, "accuracy")):
                draw_mean_and_range(axes, cell.runs, column, colour, style, label)
        for goal in wanted:
            (loss if goal.falling else accuracy).axhline(goal.value, color="0.6", linewidth=0.6, zorder=0)
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
        accuracy.set_xlim(loss.get_xlim())
        label_axes(loss, "generator loss (mean of the round)")
        label_axes(accuracy, "student's accuracy (%)")
        for axes in (loss, accuracy):
            axes.set_title(str(task), fontsize=10)
        loss.legend(loc="upper right", fontsize=9)
    figure.suptitle("Mean over seeds, with their range behind it; grey lines: the goals", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
