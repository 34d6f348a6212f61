"""Numbers that stay on the device until a round is over.

Reading a number from a GPU waits for all the work that was queued before it, so a round reads its losses once, at its
end; until then the processor runs ahead of the GPU.
"""

import statistics
import time
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from .. import processes
from ..errors import check_finite
from .device import synchronise


class Readings:
    """Terms by name, of as many steps as there were: scalars, whatever device they are on."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, ...], list[Tensor]] = {}  # by the names that were given together

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """What a step gave, without waiting for it."""
        if terms:
            values = torch.stack([value.detach().float() for value in terms.values()])
            self._steps.setdefault(tuple(terms), []).append(values)

    def extend(self, others: "Readings") -> None:
        """What others hold, too."""
        for names, steps in others._steps.items():
            self._steps.setdefault(names, []).extend(steps)

    def copied(self) -> "Readings":
        """The same in tensors of its own."""
        copy = Readings()
        copy._steps = {names: [values.clone() for values in steps] for names, steps in self._steps.items()}
        return copy

    @cached_property
    def series(self) -> dict[str, list[float]]:
        """Every term's value of every step, the mean of all processes'. Waits.

        Raises:
            NotFiniteError: if one became NaN or infinite.
        """
        found: dict[str, list[float]] = {}
        for names, steps in self._steps.items():
            rows = processes.mean(torch.stack(steps)).cpu()  # (steps, terms)
            check_finite(rows, names)
            for name, column in zip(names, rows.T.tolist(), strict=True):
                found.setdefault(name, []).extend(column)
        return found

    def means(self) -> dict[str, float]:
        """The mean over the steps of each term. Waits, and raises, as ``series`` does."""
        return {name: statistics.fmean(values) for name, values in self.series.items()}


class Stopwatch:
    """Named laps, in seconds of the device's own time; reading them waits for it, stopping a lap on CUDA does not."""

    def __init__(self, device: torch.device):
        self.device = device
        self._names: list[str] = []
        self._marks = [self._now()]

    def _now(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            synchronise(self.device)  # a kind of GPU without events here: once a lap is often enough to wait
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def lap(self, name: str) -> None:
        """Ends a lap and begins the next."""
        self._names.append(name)
        self._marks.append(self._now())

    def seconds(self) -> dict[str, float]:
        """Of all laps so far, by name."""
        if self.device.type == "cuda":
            self._marks[-1].synchronize()
        total = dict.fromkeys(self._names, 0.0)
        for name, start, end in zip(self._names, self._marks, self._marks[1:], strict=False):
            total[name] += _between(start, end)
        return total


def _between(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000  # milliseconds
