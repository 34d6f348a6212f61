"""The contract between the loop (loop.py) and whatever makes the student's images.

for epoch in run.epochs()
    for each round of the epoch
        batch <- method.synthesize(warmup)            a Batch for the pool, or None
        the student learns from the pool, or from method.sample where the method keeps none
run.finish(method.finish())                           what is left for later tasks

A method imports no other method. What it reports by name (``context.report``) reaches metrics.csv, TensorBoard and the
report without being listed anywhere.
"""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .. import configuration
from ..data.batch import Batch, Column
from ..engine.context import Context


@dataclass(frozen=True)
class Leaving:
    """What a part of a run leaves at its end.

    Attributes:
        summary: plain values for summary.json.
        files: by name, such as "gan_reuse.pth": tensors and plain values.
        remark: a line for the log.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    remark: str = ""


class Method(ABC):
    """Subclass it in a file of your own and name that with ``--method FILE.py:CLASS``.

    Attributes:
        pooled: whether batches are kept in the pool, from which the student learns; else it learns from ``sample``. An
            instance may say otherwise.
        makes_images: whether what the student learns from is counted as made; not where it is real.
        targets: the name of its targets, where they are not those that --hl and --no_aea choose.
        defaults: flags of loop, student and targets that its runs have where nothing else is said, whatever their own
            defaults and a data set's preset are.
        columns: what the method's batches have beside images, for the pool: by name, shape and type of a row.
    """

    pooled: bool = True
    makes_images: bool = True
    targets: str = ""
    defaults: dict[str, Any] = {}  # noqa: RUF012 (read only)
    columns: dict[str, Column] = {}  # noqa: RUF012 (read only)

    @dataclass(frozen=True)
    class Config(configuration.Config):
        """The method's flags: see ``configuration.knob``."""

    def __init__(self, context: Context, config: Any):
        self.context, self.config = context, config

    @classmethod
    def complete(cls, values: Namespace) -> None:
        """Fills in, before anything is built, what depends on other flags. Raises UserError where they contradict."""
        return

    @classmethod
    def label(cls, values: Namespace) -> str:
        """Of its run folders; its name unless it has variants."""
        return values.method.rsplit(":", 1)[-1]

    @property
    def images_a_round(self) -> int:
        """How many images ``synthesize`` gives at most."""
        return getattr(self.config, "synthesis_batch_size", 0)

    def images_in(self, rounds: int, warmup: int) -> int:
        """At most in so many rounds, the first ``warmup`` of them warm-up: the pool is made for them."""
        return rounds * self.images_a_round

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By name, what it trains: sizes are told, weights are watched for NaN."""
        return {}

    @property
    def remarks(self) -> list[str]:
        """Lines for the log: what it chose by itself."""
        return []

    @property
    def busy(self) -> list[nn.Module]:
        """The networks that run in every iteration: compiled where asked."""
        return list(self.networks.values())

    @abstractmethod
    def synthesize(self, warmup: bool) -> Batch | None:
        """One round: takes the generator on; gives the images made, if any. In warm-up the student knows nothing."""

    @abstractmethod
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        """Fresh images (count, C, H, W) in [0, 1] of the generator as it is, noise from the named stream."""

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """For the student of a method without a pool: ``count`` batches of fresh images; one may come several times."""
        for _ in range(count):
            yield Batch(self.sample(size))

    def finish(self) -> Leaving:
        """What the run leaves beside its student."""
        return Leaving()

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, the random streams apart: tensors and plain values."""
        return {name: network.state_dict() for name, network in self.networks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
