"""Reads back what a run left: for tables, pictures and notebooks."""

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class FinishedRun:
    """A run folder's numbers.

    Attributes:
        path: the folder.
        config: config.json.
        metrics: metrics.csv by column, a float a round, None where the cell is empty.
        summary: summary.json; empty where the run is not complete.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, list[float | None]]
    summary: dict[str, Any]

    @property
    def complete(self) -> bool:
        return bool(self.summary)

    @property
    def program(self) -> str:
        """main.py or train_scratch.py."""
        return self.config.get("program", "train_scratch.py" if "model" in self.config else "main.py")

    def rounds_to(self, accuracy: float) -> int | None:
        """The first round, warm-up counted, whose student reaches that accuracy (%); None where none does."""
        return self.first_round("accuracy", lambda reached: reached >= accuracy)

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of synthesis and distillation up to that round, evaluation left out; None where none reaches it."""
        return self.seconds_until(self.rounds_to(accuracy))

    def first_round(self, column: str, reached: Callable[[float], bool]) -> int | None:
        """The first round, warm-up counted, whose value in that column of metrics.csv is one that counts as reached."""
        values = zip(self.metrics["round"], self.metrics[column], strict=True)
        return next((int(number) for number, value in values if value is not None and reached(value)), None)

    def seconds_until(self, last: int | None) -> float | None:
        """Seconds of synthesis and distillation up to the end of a round, evaluation left out; None of None."""
        if last is None:
            return None
        columns = (self.metrics["seconds_synthesis"], self.metrics["seconds_distillation"])
        return sum(value or 0.0 for column in columns for value in column[:last])


def mean_and_std(values: Sequence[float | None], decimals: int = 2) -> str:
    """``mean ± sample standard deviation``; one value alone stands without a deviation, a missing one is counted."""
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    text = f"{statistics.mean(present):.{decimals}f}"
    if len(present) > 1:
        text += f" ± {statistics.stdev(present):.{decimals}f}"
    return text if len(present) == len(values) else f"{text} ({len(present)} of {len(values)})"


def read_run(path: Path | str) -> FinishedRun:
    """Raises UserError where the folder is not a run's."""
    path = Path(path)
    try:
        config = json.loads((path / "config.json").read_text())
        with open(path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError):
        raise UserError(f"{path} is not a run folder", "name a folder with config.json and metrics.csv") from None
    columns = rows[0].keys() if rows else ()
    metrics = {name: [float(row[name]) if row[name] else None for row in rows] for name in columns}
    return FinishedRun(path, config, metrics, _summary(path / "summary.json"))


def _summary(file: Path) -> dict[str, Any]:
    """Empty where there is none. Raises UserError where it is not what a run writes."""
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError:
        raise UserError(f"{file} is damaged", "remove it and go on with --resume, or leave the run out") from None
