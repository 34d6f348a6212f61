"""The contract between the loop and what the student is taught.

batch  <- targets.prepare(batch)               once, as it enters the pool
lesson <- targets.lesson(batch)                of every batch that is drawn; serves ``--echo`` distillation steps
L_S    <- targets.loss(lesson, student)        at every distillation step
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import configuration
from ..data.batch import Batch, Column
from ..engine.context import Context
from ..models.classifier import Classifier


class Targets(ABC):
    """Reports its terms through the context.

    Attributes:
        suffix: of the names of run folders.
    """

    suffix: str = ""

    @dataclass(frozen=True)
    class Config(configuration.Config):
        """The flags: see ``configuration.knob``."""

    def __init__(self, context: Context, config: Any):
        self.context, self.config = context, config

    @property
    def columns(self) -> dict[str, Column]:
        """What ``prepare`` adds to a batch, for the pool: by name, shape and type of a row."""
        return {}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By name, what is trained beside student and generator."""
        return {}

    def prepare(self, batch: Batch) -> Batch:
        """A batch as the pool takes it."""
        return batch

    def lesson(self, batch: Batch) -> Batch:
        """A batch as the pool gives it, with all of the loss that does not depend on the student."""
        return batch

    @abstractmethod
    def loss(self, lesson: Batch, student: Classifier) -> Tensor:
        """What the student minimises."""

    def files(self) -> dict[str, dict[str, Any]]:
        """What is left at the end, by name: tensors and plain values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the random streams apart."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        return
