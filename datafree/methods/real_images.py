"""Yardsticks that need the real training set: what distillation and plain training reach with it.

kd         L_S = L_kd as --T and --hl say, on real images         what a data-free method is measured against
scratch    L_S = CE(S(x), true class)                             what the student reaches without a teacher

x, y <- the training set, shuffled anew for every round; x is cropped and mirrored like synthetic images
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .. import processes
from ..data.augmentation import Augmentation, to_pixels
from ..data.batch import Batch
from ..data.specs import TensorImages
from ..engine.context import Context
from ..errors import UserError
from .base import Method


class Kd(Method):
    """Draws from the stream "distillation", for pictures from "sample"."""

    pooled = makes_images = False
    defaults = {"warmup": 0}  # noqa: RUF012 (read only)

    def __init__(self, context: Context, config: "Kd.Config"):
        super().__init__(context, config)
        images, device = context.training_images(), context.compute.device
        self.images = images.to(device) if isinstance(images, TensorImages) else images
        padding = 0 if images.crops else context.augmentation.padding
        self.augmentation = Augmentation(padding, context.augmentation.flip)

    @classmethod
    def complete(cls, values: Namespace) -> None:
        if values.warmup:
            raise UserError(f"--warmup {values.warmup}: {values.method} synthesises nothing", "set --warmup 0")

    @property
    def remarks(self) -> list[str]:
        return [f"{len(self.images):,} real training images: a yardstick, not data-free", *self.images.remarks]

    def synthesize(self, warmup: bool) -> None:
        return None

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        rng, device = self.context.streams["distillation"], self.context.compute.device
        order, part = self.context.streams.common("distillation"), (processes.rank(), processes.size())
        while count > 0:
            for levels, labels in self.images.shuffled(size * part[1], order, device, drop_last=True, part=part):
                yield Batch(to_pixels(self.augmentation(levels, rng)), {"labels": labels})
                count -= 1
                if count == 0:
                    return

    def sample(self, count: int, stream: str = "sample") -> Tensor:
        levels, _ = next(self.images.shuffled(count, self.context.streams[stream], self.context.compute.device))
        return to_pixels(levels)

    def state_dict(self) -> dict[str, Any]:
        return {}


class Scratch(Kd):
    """Its targets are the true classes."""

    targets = "labels"
