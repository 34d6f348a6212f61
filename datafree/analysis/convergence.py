"""How fast generator and student get somewhere, anew against reuse: epochs and seconds to given losses and accuracies.

A run reaches an accuracy in the first epoch, warm-up counted, whose student has at least it, and a loss in the first
epoch whose mean is at most it; seconds are those of work, evaluation left out, up to the end of that epoch.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..reporting.plots import draw_accuracy_and_loss, plt, save
from ..reporting.results import CELL, TASK, collect, task_name
from ..reporting.run_reader import mean_and_std, read_run


def read_cells(patterns: Mapping[str, str | Sequence[str]], root: Path = Path()) -> tuple[pd.DataFrame, list[str]]:
    """The finished runs, a row each as of ``results.collect``, by ``label``, and notes on what is left out.

    A label has one or more patterns of run folders below ``root``, as in ``run/anew-digits-*-seed?``. Raises UserError
    where no label has a finished run, or one mixes methods, tasks or settings.
    """
    frames, notes = [], []
    for label, wanted in patterns.items():
        wanted = [wanted] if isinstance(wanted, str) else wanted
        found = sorted({root / name for pattern in wanted for name in glob.glob(pattern, root_dir=root)})
        frame, said = collect(read_run(path) for path in found if path.is_dir())
        cells = frame.drop_duplicates(CELL).itertuples()
        cells = [f"{cell.label} on {task_name(cell.dataset, cell.teacher, cell.student)}" for cell in cells]
        if len(cells) > 1:
            raise UserError(f"{label!r} mixes what cannot be averaged: {'; '.join(cells)}", "narrow its patterns")
        frames.append(frame[frame.complete].assign(label=label))
        notes += said
        if frames[-1].empty:
            notes.append(f"left out: {label}: no finished run at {', '.join(wanted)}")
    if not any(map(len, frames)):
        raise UserError("no finished run at any of the patterns", "make the runs first, or name others")
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True), notes


def measure(runs: pd.DataFrame, goals: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """A row a run and goal (a value of a column): epochs and seconds to it, NaN where not reached. No empty columns."""
    rows = []
    for _, cell in runs.groupby("label", sort=False):
        for column, values in goals.items():
            known = any(run.metrics.get(column, pd.Series()).notna().any() for run in cell.run)
            for value in values if known else ():
                found = {"epochs": "epochs_to", "seconds": "seconds_to"}
                found = {name: [getattr(run, to)(value, column) for run in cell.run] for name, to in found.items()}
                rows.append(cell[["label", "method", *TASK, "seed"]].assign(measure=column, goal=value, **found))
    return pd.concat(rows, ignore_index=True).astype({"epochs": float, "seconds": float})


def table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a label and goal, as text; means are over the runs that reached it, and the others are counted."""
    rows = []
    for (label, column, value), group in found.groupby(["label", "measure", "goal"], sort=False):
        name = column.replace("loss_generator", "generator loss")
        goal = f"{name} ≤ {value:g}" if column.startswith("loss") else f"{name} ≥ {value:g} %"
        row = {"runs": label, "goal": goal, "n": len(group), "not reached": int(group.epochs.isna().sum())}
        for name in ("epochs", "seconds"):
            row[name] = mean_and_std(group[name], 1) if group[name].any() else "not reached"
        rows.append(row)
    return pd.DataFrame(rows)


def draw(runs: pd.DataFrame, path: Path, goals: Mapping[str, Sequence[float]]) -> None:
    """A row a task: loss and accuracy over epochs, a line a method; goals as thin grey lines."""
    tasks = runs.groupby(TASK, sort=False)
    size = (10, 0.5 + 2.9 * len(tasks))
    figure, rows = plt.subplots(len(tasks), 2, figsize=size, layout="constrained", squeeze=False)
    for (loss, accuracy), (task, cells) in zip(rows, tasks, strict=True):
        groups = {f"{method} (n = {len(cell)})": list(cell.run) for method, cell in cells.groupby("method", sort=False)}
        draw_accuracy_and_loss(groups, accuracy, loss)
        for column, values in goals.items():
            for value in values:
                (accuracy if column == "accuracy" else loss).axhline(value, color="0.6", linewidth=0.6, zorder=0)
        loss.set_title(task_name(*task), fontsize=10)
        accuracy.set_title(task_name(*task), fontsize=10)
    figure.suptitle("Mean over seeds, with their range behind it; grey lines: the goals", fontsize=10)
    save(figure, path, dpi=90)
