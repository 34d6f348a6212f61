"""Reads back what a run left: for tables, pictures and notebooks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..paths import found_again


@dataclass(frozen=True)
class FinishedRun:
    """A run folder's numbers."""

    path: Path
    config: dict[str, Any]
    metrics: pd.DataFrame  # the numeric columns of metrics.csv, a row an epoch; ``epoch`` counts
    summary: dict[str, Any]  # empty where the run is not complete

    @property
    def complete(self) -> bool:
        return bool(self.summary)

    @property
    def task(self) -> tuple[str, str, str]:
        """Data set, teacher and student; of a run of train_scratch.py, "" for a teacher and its model."""
        config = self.config
        return config["dataset"], config.get("teacher") or "", config.get("student") or config.get("model")

    @property
    def pair(self) -> str:
        """As the paper writes it."""
        return " > ".join(filter(None, self.task[1:]))

    @property
    def method(self) -> str:
        """Its name in tables: "scratch", or the method (of AEAHL-RG the mode) and what is done about the hard loss."""
        config = self.config
        if "model" in config:
            return "scratch"
        name = config.get("method", "aeahl_rg").rpartition(":")[2]  # of FILE.py:CLASS the class
        name = config["mode"] if name == "aeahl_rg" else name
        return name + ("-hl-noaea" if config.get("no_aea") else "-hl") * bool(config.get("hl"))

    def epochs_to(self, value: float, column: str = "accuracy") -> int | None:
        """The first epoch, warm-up counted, with at least that accuracy (%) or at most that loss; None: not reached."""
        values = self.metrics.get(column, pd.Series(dtype=float))
        reached = values <= value if column.startswith("loss") else values >= value
        return int(self.metrics.epoch[reached.idxmax()]) if reached.any() else None

    def seconds_to(self, value: float, column: str = "accuracy") -> float | None:
        """Seconds of work up to the end of that epoch, evaluation left out; None where none reaches it."""
        last = self.epochs_to(value, column)
        work = self.metrics.filter(regex="^seconds_(?!evaluation$)")
        return None if last is None else float(work[self.metrics.epoch <= last].sum().sum())


def mean_and_std(values: Sequence[float | None], decimals: int = 2) -> str:
    """``mean ± sample standard deviation``; one value alone stands without a deviation, a missing one is counted."""
    present = pd.Series(values, dtype=float).dropna()
    if present.empty:
        return "-"
    spread = f" ± {present.std():.{decimals}f}" if len(present) > 1 else ""
    missing = f" ({len(present)} of {len(values)})" if len(present) < len(values) else ""
    return f"{present.mean():.{decimals}f}{spread}{missing}"


def read_run(path: Path | str) -> FinishedRun:
    """Raises UserError where the folder is not a run's, or its summary is damaged."""
    path, summary = Path(path), Path(path) / "summary.json"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        metrics = pd.read_csv(path / "metrics.csv")
        metrics = metrics.select_dtypes("number") if len(metrics) else metrics.astype(float)
    except (OSError, ValueError):
        raise UserError(f"{path} is not a run folder", "name a folder with config.json and metrics.csv") from None
    if "epoch" not in metrics:
        metrics = metrics.rename(columns={"round": "epoch"})  # as older runs called it
    try:
        numbers = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    except ValueError:
        raise UserError(f"{summary} is damaged", "remove it and go on with --resume, or leave the run out") from None
    return FinishedRun(path, found_again(config, path), metrics, numbers)
