"""Noise as images: a yardstick. What a student learns without any synthesis, every other method must surpass.

x ~ U(0, 1) for each pixel;  x goes to the pool
x ~ N(mean, std) of the data (--noise normal), fresh in each batch: a pool holds no pixels beyond [0, 1]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch
from ..engine.context import Context
from .base import Method


class Noise(Method):
    """Draws from the streams "synthesis" and "sample". The teacher is asked nothing, but where --hl's attack learns."""

    defaults = {"warmup": 0}  # noqa: RUF012 (read only)

    @dataclass(frozen=True)
    class Config(configuration.Config):
        noise: str = knob(
            "uniform",
            "uniform: over [0, 1], kept in the pool; normal: with the data's mean and standard deviation, also beyond "
            "[0, 1], and not kept",
            choices=("uniform", "normal"),
        )
        synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")

    def __init__(self, context: Context, config: "Noise.Config"):
        super().__init__(context, config)
        self.pooled = config.noise == "uniform"
        spec, device = context.spec, context.compute.device
        self.mean, self.std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std))

    def synthesize(self, warmup: bool) -> Batch | None:
        x = self.sample(self.config.synthesis_batch_size, "synthesis")
        if self.context.observers:
            self.context.observe(x, self.context.answers(x))
        return Batch(x) if self.pooled else None

    def sample(self, count: int, stream: str = "sample") -> Tensor:
        how = {"generator": self.context.streams[stream], "device": self.context.compute.device}
        shape = (count, *self.context.spec.shape)
        return torch.rand(shape, **how) if self.pooled else self.mean + self.std * torch.randn(shape, **how)
