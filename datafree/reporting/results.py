"""Runs gathered into cells: a method on a task, over seeds.

cell = the runs of one method, data set, teacher and student whose settings differ in nothing but the seed

Runs that differ in more stand in cells of their own, a run without its end counts nowhere, and a seed counts once;
each of these is said in a note.
"""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..modes import MODES, method_name
from ..resume import FREE
from .run_reader import FinishedRun

SCRATCH = "scratch"
METHODS = (SCRATCH, *(method_name(mode, *hard) for mode in MODES for hard in ((0, 0), (1, 1), (1, 0))))
# What two runs of a cell may differ in: the seed, where files are, the machine.
NOT_SETTINGS = FREE | {"seed", "tag", "output", "program", "environment"}
REUSED = ("reuse_generator_path", "reuse_decoder_path")


class Task(NamedTuple):
    """What a student is distilled on; a run of train_scratch.py has no teacher."""

    dataset: str
    teacher: str | None
    student: str

    def __str__(self) -> str:
        return f"{self.dataset}, {self.pair}"

    @property
    def pair(self) -> str:
        """As the paper writes it."""
        return f"{self.teacher} > {self.student}" if self.teacher else self.student


@dataclass(frozen=True)
class Cell:
    """One method on one task in one setting.

    Attributes:
        method: the mode with -hl or -hl-noaea, or "scratch".
        task: the task.
        setting: what sets it apart from the method's other cells on the task, as in "lr 0.1"; empty where it is alone.
        runs: one finished run a seed, in the order of the seeds.
        incomplete: runs without an end, of seeds that no finished run has.
    """

    method: str
    task: Task
    setting: str
    runs: Sequence[FinishedRun]
    incomplete: Sequence[FinishedRun]

    @property
    def label(self) -> str:
        return f"{self.method} ({self.setting})" if self.setting else self.method

    def values(self, measure: str) -> list[float | None]:
        """A number of summary.json, a run each; None where a run has none."""
        return [run.summary.get(measure) for run in self.runs]


def collect(runs: Iterable[FinishedRun]) -> tuple[list[Cell], list[str]]:
    """Cells, in the order of tasks as they come and of methods, and notes on what is counted apart or not at all."""
    groups: dict[tuple[Task, str], list[FinishedRun]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():  # a folder named twice is one run
        groups.setdefault((task_of(run), method_of(run)), []).append(run)
    order = list(dict.fromkeys(task for task, _ in groups))
    cells, notes = [], []
    for task, method in sorted(groups, key=lambda key: (order.index(key[0]), METHODS.index(key[1]))):
        made, said = _cells(method, task, groups[task, method])
        cells, notes = cells + made, notes + said
    return cells, notes + _teachers_that_differ(cells)


def task_of(run: FinishedRun) -> Task:
    """The task of a run of either program."""
    student = run.config["model"] if run.program == "train_scratch.py" else run.config["student"]
    return Task(run.config["dataset"], run.config.get("teacher"), student)


def method_of(run: FinishedRun) -> str:
    """The mode with what its folder's name says of the hard loss, or "scratch"."""
    config = run.config
    if run.program == "train_scratch.py":
        return SCRATCH
    return method_name(config["mode"], config.get("hl", False), config.get("no_aea", False))


def settings(run: FinishedRun) -> dict[str, Any]:
    """What must be equal for two runs to be averaged; of a teacher's file its name, of reused files where from."""
    kept = {name: value for name, value in run.config.items() if name not in NOT_SETTINGS}
    if kept.get("teacher_path"):
        kept["teacher_path"] = Path(kept["teacher_path"]).name
    return kept | {name: _left_by(Path(kept[name]), run.config["seed"]) for name in REUSED if kept.get(name)}


def _left_by(file: Path, seed: int) -> str:
    """The run folder that a reused file is in, without the seed that its name may end in, and the file's name."""
    return "/".join((re.sub(rf"(?<![0-9]){seed}$", "", file.parent.name), file.name))


def _cells(method: str, task: Task, runs: Sequence[FinishedRun]) -> tuple[list[Cell], list[str]]:
    """The cells of one method on one task, and the notes on them."""
    alike: dict[str, list[FinishedRun]] = {}
    for run in runs:
        alike.setdefault(json.dumps(settings(run), sort_keys=True), []).append(run)
    told = [settings(group[0]) for group in alike.values()]
    names = dict.fromkeys(name for each in told for name in each)
    differing = [name for name in names if any(name not in each or each[name] != told[0].get(name) for each in told)]
    cells, notes = [], []
    for group, each in zip(alike.values(), told, strict=True):
        setting = ", ".join(f"{name} {each.get(name, 'not recorded')}" for name in differing)
        cell, said = _cell(method, task, setting, group)
        cells.append(cell)
        notes += said
    if differing:
        apart = "; ".join(cell.setting for cell in cells)
        notes.insert(0, f"warning: {method} on {task}: runs of other settings are not averaged together: {apart}")
    return cells, notes


def _cell(method: str, task: Task, setting: str, runs: Sequence[FinishedRun]) -> tuple[Cell, list[str]]:
    """One cell of runs of equal settings: of a seed, the run named first counts."""
    finished, incomplete, notes = {}, {}, []
    for run in runs:
        seed = run.config["seed"]
        where = f"{method} on {task}, seed {seed}"
        if not run.complete:
            incomplete.setdefault(seed, run)
            rows = len(next(iter(run.metrics.values()), ()))
            notes.append(f"incomplete, not counted: {run.path} ({where}; rows of metrics.csv: {rows})")
        elif seed in finished:
            notes.append(f"warning: {where} was run twice and counts once: {finished[seed].path}, not {run.path}")
        else:
            finished[seed] = run
    without_end = [run for seed, run in incomplete.items() if seed not in finished]
    return Cell(method, task, setting, [finished[seed] for seed in sorted(finished)], without_end), notes


def teacher_accuracies(cells: Iterable[Cell], dataset: str, teacher: str | None) -> list[float]:
    """What runs say of a teacher (%), each value to two decimals once: more than one means more than one teacher."""
    said = {
        round(value, 2)
        for cell in cells
        if (cell.task.dataset, cell.task.teacher) == (dataset, teacher)
        for value in cell.values("accuracy_teacher")
        if value is not None
    }
    return sorted(said)


def _teachers_that_differ(cells: Sequence[Cell]) -> list[str]:
    notes = []
    for dataset, teacher in dict.fromkeys((cell.task.dataset, cell.task.teacher) for cell in cells):
        said = teacher_accuracies(cells, dataset, teacher)
        if len(said) > 1:
            values = ", ".join(f"{value:.2f}" for value in said)
            notes.append(f"warning: teacher {teacher} on {dataset} has {values} %: another file, machine or precision")
    return notes


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation and count of what is there; None for what that many values do not have."""
    present = [value for value in values if value is not None]
    return (
        statistics.mean(present) if present else None,
        statistics.stdev(present) if len(present) > 1 else None,
        len(present),
    )
