"""Noise as images: a yardstick. What a student learns without any synthesis, every other method must surpass.

x ~ U(0, 1) for each pixel;  x goes to the pool
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch
from .base import Method


class Noise(Method):
    """Draws from the streams "synthesis" and "sample". The teacher is asked nothing, but where --hl's attack learns."""

    defaults = {"warmup": 0}  # noqa: RUF012 (read only)

    @dataclass(frozen=True)
    class Config(configuration.Config):
        synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")

    def synthesize(self, warmup: bool) -> Batch:
        x = self.sample(self.config.synthesis_batch_size, "synthesis")
        if self.context.observers:
            self.context.observe(x, self.context.answers(x))
        return Batch(x)

    def sample(self, count: int, stream: str = "sample") -> Tensor:
        shape, device = (count, *self.context.spec.shape), self.context.compute.device
        return torch.rand(shape, generator=self.context.streams[stream], device=device)
