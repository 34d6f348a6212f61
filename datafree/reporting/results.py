"""Runs gathered into cells: a method on a task, over seeds.

cell = the runs of one method, data set, teacher and student whose settings differ in nothing but the seed

Runs that differ in more stand in cells of their own, a run without its end counts nowhere, and a seed counts once;
each of these is said in a note.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ..paths import portable
from .run_reader import FinishedRun

TASK = ["dataset", "teacher", "student"]
CELL = [*TASK, "method", "setting"]
COLUMNS = [*CELL, "label", "seed", "run", "complete"]
# What two runs of a cell may differ in: the seed, where files are, the machine.
_FREE = "seed tag output program environment groups defaults format resume overwrite dry_run device data_root run_root "
NOT_SETTINGS = set((_FREE + "download workers teacher_checksum step").split())


def collect(runs: Iterable[FinishedRun]) -> tuple[pd.DataFrame, list[str]]:
    """A row a run that counts, or that lacks its end, and notes on what is counted apart or not at all.

    The columns are COLUMNS and the numbers of summary.json. A run of train_scratch.py has the teacher "" and the method
    "scratch"; ``setting`` says what sets a cell apart from the method's others on the task, as in "lr 0.1"; ``label``
    is method and setting. Tasks stand in the order in which they come; methods (scratch first), then seeds, are sorted.
    """
    runs = {run.path.resolve(): run for run in runs}.values()  # a folder named twice is one run
    known = [(*run.task, run.method, "", "", run.config["seed"], run, run.complete) for run in runs]
    frame = pd.DataFrame(known, columns=COLUMNS).astype({"complete": bool})
    numbers = pd.DataFrame([run.summary for run in runs], index=frame.index)
    frame, notes = frame.join(numbers.drop(columns=COLUMNS, errors="ignore")), []
    for (*task, method), group in frame.groupby([*TASK, "method"], sort=False):
        told = _differing([settings(run) for run in group.run])
        frame.loc[group.index, "setting"] = told
        if any(told):
            where = f"{method} on {task_name(*task)}: runs of other settings are not averaged together"
            notes.append(f"warning: {where}: {'; '.join(dict.fromkeys(told))}")
    frame["label"] = [method + f" ({setting})" * bool(setting) for method, setting in frame[CELL[-2:]].to_numpy()]
    frame["task"] = frame.groupby(TASK, sort=False).ngroup()
    frame["distilled"] = frame.method != "scratch"
    order = ["task", "distilled", "method", "setting", "seed"]
    frame = frame.sort_values("complete", ascending=False, kind="stable").sort_values(order, kind="stable")
    first = frame.groupby([*CELL, "seed"], sort=False).run.transform("first")
    for row, counted in zip(frame.itertuples(), first, strict=True):
        where = f"{row.label} on {task_name(row.dataset, row.teacher, row.student)}, seed {row.seed}"
        if not row.complete:
            notes.append(f"incomplete, not counted: {row.run.path} ({where}; epochs: {len(row.run.metrics)})")
        elif row.run is not counted:
            notes.append(f"warning: {where} was run twice and counts once: {counted.path}, not {row.run.path}")
    frame = frame.drop_duplicates([*CELL, "seed"]).drop(columns=["task", "distilled"]).reset_index(drop=True)
    for (dataset, teacher), said in teacher_accuracies(frame).items():
        if "," in said:
            notes.append(f"warning: teacher {teacher} on {dataset} has {said} %: another file, machine or precision")
    return frame, notes


def task_name(dataset: str, teacher: str, student: str) -> str:
    """As in ``digits, wrn16_1 > resnet8``, without the folders that lead to them."""
    return f"{portable(dataset)}, {' > '.join(portable(name) for name in (teacher, student) if name)}"


def settings(run: FinishedRun) -> dict[str, Any]:
    """What must be equal for two runs to be averaged; of a user's file its name, of reused files where from."""
    kept = {"method": "aeahl_rg"} | {name: value for name, value in run.config.items() if name not in NOT_SETTINGS}
    if run.config.get("budget_seconds") or run.config.get("budget_teacher_passes"):
        kept = {name: value for name, value in kept.items() if name not in ("epochs", "warmup")}  # follow from it
    for name, value in kept.items():
        if (value and name == "teacher_path") or (isinstance(value, str) and ".py:" in value):
            kept[name] = Path(value).name
        elif value and re.fullmatch("reuse_.*_path", name):  # the folder's name without the seed that it may end in
            folder = re.sub(rf"(?<![0-9]){run.config['seed']}$", "", Path(value).parent.name)
            kept[name] = f"{folder}/{Path(value).name}"
    return kept


def _differing(told: list[dict[str, Any]]) -> list[str]:
    """Of each of several settings, what is not the same in all of them, as text."""
    names = dict.fromkeys(name for each in told for name in each)
    values = {name: [json.dumps(each.get(name, "not recorded")).strip('"') for each in told] for name in names}
    names = [name for name in names if len(set(values[name])) > 1]
    return [", ".join(f"{name} {values[name][i]}" for name in names) for i in range(len(told))]


def teacher_accuracies(frame: pd.DataFrame) -> pd.Series:
    """By data set and teacher, what runs say of it (%), to two decimals, each value once, as text: "98.00, 99.50"."""
    said = frame[frame.teacher != ""].reindex(columns=["dataset", "teacher", "accuracy_teacher"])
    said["accuracy_teacher"] = said.accuracy_teacher.astype(float).round(2)
    said = said.dropna().drop_duplicates().sort_values("accuracy_teacher")
    return said.accuracy_teacher.map("{:.2f}".format).groupby([said.dataset, said.teacher], sort=False).agg(", ".join)
