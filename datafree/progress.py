"""How far a run is: counters and scores that a resumption needs, and the line that says what a round gave."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .evaluation import NO_SCORE, Score


@dataclass
class Progress:
    """What is true after ``round`` rounds, apart from the state of the networks.

    Attributes:
        round: rounds done.
        generator_loss: one value a generator iteration.
        score, best: of the newest and of the best student.
        seconds_synthesis: spent in synthesis so far.
        seconds_total: spent by all processes so far.
        metrics_bytes: length of metrics.csv.
    """

    round: int = 0
    generator_loss: list[float] = field(default_factory=list)
    score: Score = NO_SCORE
    best: Score = NO_SCORE
    seconds_synthesis: float = 0.0
    seconds_total: float = 0.0
    metrics_bytes: int = 0

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any] | None) -> "Progress":
        """From :meth:`state`; from None, the beginning."""
        if state is None:
            return cls()
        return cls(**{**state, "score": Score(**state["score"]), "best": Score(**state["best"])})


def round_line(row: Mapping[str, Any], counter: str, total: int) -> str:
    """One line for people: counter, losses without their prefix, accuracy, seconds."""
    parts = [f"{counter} {row[counter]:>{len(str(total))}}/{total}"]
    for key, value in row.items():
        if key.startswith("loss") and value is not None:
            parts.append(f"{key.removeprefix('loss_')} {value:.3f}")
    for key in ("accuracy", "agreement"):
        if row.get(key) is not None:
            parts.append(f"{key} {row[key]:.2f} %")
    seconds = sum(value for key, value in row.items() if key.startswith("seconds"))
    return "  ".join([*parts, f"{seconds:.1f} s"])
