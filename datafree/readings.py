"""Numbers that stay on the device until a round is over.

Reading a number from a GPU waits for all the work that was queued before it, so a round reads its losses once, at its
end; until then the processor runs ahead of the GPU.
"""

import time
from functools import cached_property

import torch
from torch import Tensor

from .errors import check_finite


class Readings:
    """Terms of the steps of a round, by name; every step gives the same ones. Scalars, whatever device they are on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._steps: list[Tensor] = []
        self._noted: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """What a step gave, without waiting for it."""
        self.names = list(terms)
        self._steps.append(torch.stack([value.detach() for value in terms.values()]))

    def note(self, name: str, value: float) -> None:
        """A number that needs no reading; of several notes the last counts."""
        self._noted[name] = value

    @cached_property
    def rows(self) -> Tensor:
        """All of it, on the CPU: (steps, terms). Waits. Raises NotFiniteError if a term became NaN or infinite."""
        rows = torch.stack(self._steps).cpu()
        check_finite(rows, self.names)
        return rows

    def means(self) -> dict[str, float]:
        """The mean over the steps of each term, and what was noted. Waits, and raises, as ``rows`` does."""
        means = dict(zip(self.names, self.rows.mean(0).tolist(), strict=True)) if self._steps else {}
        return means | self._noted

    def __getitem__(self, name: str) -> float:
        """One of :meth:`means`."""
        return self.means()[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Readings) and self.means() == other.means()

    def of(self, name: str) -> list[float]:
        """One term of every step. Waits, and raises, as ``rows`` does."""
        return self.rows[:, self.names.index(name)].tolist()


class Stopwatch:
    """Named laps, in seconds of the device's own time; reading them waits for it, stopping a lap does not."""

    def __init__(self, device: torch.device):
        self.device = device
        self._names: list[str] = []
        self._marks = [self._now()]

    def _now(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def lap(self, name: str) -> None:
        """Ends a lap and begins the next."""
        self._names.append(name)
        self._marks.append(self._now())

    def seconds(self) -> dict[str, float]:
        """Every lap so far."""
        if self.device.type == "cuda":
            self._marks[-1].synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return dict(zip(self._names, (_between(*pair) for pair in pairs), strict=True))


def _between(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000  # milliseconds
