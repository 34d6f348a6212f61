"""Time and text: what a round took, and the line that says what it gave."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class Stopwatch:
    """Seconds between laps; on a GPU a lap waits for the work that was queued."""

    def __init__(self, device: torch.device):
        self.device = device
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, before = time.perf_counter(), getattr(self, "_last", 0.0)
        self._last = now
        return now - before


def round_line(row: Mapping[str, Any], total: int) -> str:
    """One line for people: counter, losses without their prefix, accuracy, seconds."""
    counter = next(key for key in ("round", "epoch") if key in row)
    parts = [f"{counter} {row[counter]:>{len(str(total))}}/{total}"]
    for key, value in row.items():
        if key.startswith("loss") and value is not None:
            parts.append(f"{key.removeprefix('loss_')} {value:.3f}")
    for key in ("accuracy", "agreement"):
        if row.get(key) is not None:
            parts.append(f"{key} {row[key]:.2f} %")
    seconds = sum(value for key, value in row.items() if key.startswith("seconds"))
    return "  ".join([*parts, f"{seconds:.1f} s"])
