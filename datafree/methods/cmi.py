"""CMI (Fang et al. 2021): inversion in which each image is to differ from the others of its batch and earlier ones.

a round:
    G redrawn;  z ~ N(0, I) (B, nz);  y ~ U{0..C-1}, sorted
    for g_steps
        x   <- G(z);  x_g <- its crop and flip, x_l <- a part of it (a quarter to all), resized, and flip
        f_g, f_l = spatial means of the inputs of T's BN layers for x_g, x_l
        m        = min(negatives, what there is) features of earlier batches, at random: (m_l, m_g)
        a, o     = h(f_l, m_l), h(f_g, m_g)          h: two linear layers, ReLU between, unit length
        L_cr     = InfoNCE(a, o, tau), mean over the batch + mean over m
        L        = bn * L_bn(x_g) + oh * L_oh(x_g, y) + adv * L_adv(x_g) + cr * L_cr      L_adv not in warm-up
        remember x, f_l, f_g of the lowest L
        G, z    <- Adam(lr_g), new each round;  h <- Adam(lr_g), kept
    the best x goes to the pool, its f_l and f_g to the memory, where the oldest make room
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import configuration
from ..configuration import knob
from ..data.augmentation import random_resized_crop_flip
from ..data.batch import Batch
from ..engine.context import Context
from ..engine.randomness import initialising
from ..errors import UserError
from ..losses.contrastive import contrastive_loss
from ..losses.kd import adversarial_loss, one_hot_loss
from ..models.generator import ImageGenerator, draw_as_dcgan
from ..models.norm_statistics import NormStatistics, SpatialMeans
from .base import Method
from .inversion import Best


class Memory:
    """The newest rows (capacity, width) of all that were added, in a ring on one device."""

    def __init__(self, capacity: int, width: int, device: torch.device):
        self.rows = torch.empty(capacity, width, device=device)
        self.size, self.next = 0, 0  # rows that hold something; where the next one goes

    def add(self, rows: Tensor) -> None:
        """Any number of rows; where there is no more room, in place of the oldest."""
        rows, capacity = rows[-len(self.rows) :], len(self.rows)
        first = min(len(rows), capacity - self.next)
        self.rows[self.next : self.next + first] = rows[:first]
        self.rows[: len(rows) - first] = rows[first:]
        self.next, self.size = (self.next + len(rows)) % capacity, min(self.size + len(rows), capacity)

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` rows without replacement; all, where there are no more."""
        if count >= self.size:
            return self.rows[: self.size]
        return self.rows[torch.randperm(self.size, generator=generator, device=self.rows.device)[:count]]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows[: self.size].clone(), "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a memory of another capacity, as more or fewer processes have, the newest that there is room for."""
        rows, following, capacity = state["rows"], state["next"], len(self.rows)
        if len(rows) != capacity:
            rows = rows.roll(-following, 0)[-capacity:]  # the oldest first
            following = len(rows)
        self.size, self.next = len(rows), following % capacity
        self.rows[: self.size] = rows


class Head(nn.Sequential):
    """h: features (N, width) -> unit vectors (N, out)."""

    def __init__(self, width: int, out: int):
        super().__init__(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, out))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(super().forward(features).float(), dim=1)


class Cmi(Method):
    """See the top of the file. Draws from the streams "synthesis" and "sample"."""

    defaults = {"warmup": 0}  # noqa: RUF012 (read only)

    @dataclass(frozen=True)
    class Config(configuration.Config):
        synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")
        g_steps: int = knob(200, "iterations a round; more give better images, slower (the paper: 500)", low=1)
        nz: int = knob(256, "length of the noise vector z", low=1, high=2**16, unit="N")
        ngf: int = knob(64, "width of the generator; lower is faster", low=1, high=2**16, unit="CHANNELS")
        lr_g: float = knob(1e-3, "learning rate of generator, z and head", above=0)
        adam_betas: tuple[float, float] = knob(
            (0.5, 0.999), "of Adam on generator and z", low=0, high=0.9999, unit="BETA"
        )
        bn: float = knob(1.0, "weight of L_bn: raise it for images closer to the teacher's training data", low=0)
        oh: float = knob(1.0, "weight of L_oh: raise it for images of clearer class", low=0)
        adv: float = knob(0.5, "weight of L_adv: raise it for images that the student finds harder", low=0)
        cr: float = knob(0.8, "weight of L_cr: raise it for images that differ more from each other", low=0)
        cr_tau: float = knob(0.2, "temperature of L_cr; lower makes the most alike count for more", above=0)
        features: str = knob(
            "all",
            "BatchNorm layers that give features; stages: the last at each resolution, for wide teachers",
            choices=("all", "stages"),
        )
        head_width: int = knob(256, "length of the vectors that are compared", low=1, high=2**16, unit="N")
        bank_size: int = knob(40960, "images whose features are remembered", low=1, unit="IMAGES")
        negatives: int = knob(4096, "remembered images in an iteration; fewer are faster", low=0, unit="IMAGES")

    def __init__(self, context: Context, config: "Cmi.Config"):
        super().__init__(context, config)
        place, shape, seed = context.compute.place, context.spec.shape, context.streams.seed
        self.statistics = NormStatistics(context.teacher, momentum=0.0)
        self.means = SpatialMeans(context.teacher, stages=config.features == "stages")
        self.width = self._width()
        with initialising(seed, "generator"):
            self.generator = place(ImageGenerator(config.nz, config.ngf, shape[1:], shape[0])).train()
        with initialising(seed, "head"):
            self.head = place(Head(self.width, config.head_width)).train()
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), config.lr_g, fused=context.compute.fused)
        self.memory = Memory(config.bank_size, 2 * self.width, context.compute.device)

    def _width(self) -> int:
        """Of the features of an image. Raises UserError for a teacher that has none."""
        context = self.context
        noise = torch.rand(2, *context.spec.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), self.means.listening():
            context.ask(context.teacher, noise.to(context.compute.device))
        if not self.means.heard:
            what = f"method cmi compares images at BatchNorm layers, and teacher {context.teacher.name} has none"
            raise UserError(what, "choose another teacher, or --method deepinversion or aeahl_rg")
        return self.means.features().shape[1]

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "head": self.head}

    @property
    def busy(self) -> list[nn.Module]:
        return [self.generator]  # of the head's input, the length grows with the memory

    @property
    def remarks(self) -> list[str]:
        most, gigabytes = self.config.bank_size, self.memory.rows.nbytes / 1e9
        return [f"memory: {most:,} images, twice {self.width:,} features each, {gigabytes:.2g} GB where it is full"]

    def synthesize(self, warmup: bool) -> Batch:
        context, config, rng, best = self.context, self.config, self.context.streams["synthesis"], Best()
        B, device = config.synthesis_batch_size, context.compute.device
        draw_as_dcgan(self.generator, context.streams.common("synthesis"))
        z = torch.randn(B, config.nz, generator=rng, device=device).requires_grad_()
        y = torch.randint(context.spec.num_classes, (B,), generator=rng, device=device).sort().values
        parameters, of_head = [*self.generator.parameters(), z], [*self.head.parameters()]
        optimizer = torch.optim.Adam(parameters, config.lr_g, config.adam_betas, fused=context.compute.fused)
        for _ in range(config.g_steps):
            x = context.ask(self.generator, z)  # (B, nz) -> (B, C, H, W)
            loss, features = self.objective(x, y, adversarial=not warmup and config.adv > 0)
            loss = context.backward(loss, parameters + of_head)
            best.keep(x, loss, features)
            optimizer.step()
            self.head_optimizer.step()
        self.memory.add(*best.beside)
        return Batch(best.images)

    def objective(self, x: Tensor, y: Tensor, adversarial: bool) -> tuple[Tensor, Tensor]:
        """L of images x (B, C, H, W) in [0, 1] for classes y (B,), and their features (B, 2 * width), local first."""
        context, config, rng = self.context, self.config, self.context.streams["synthesis"]
        view = context.augmentation(x, rng)  # x_g
        with self.statistics.listening(), self.means.listening():
            teacher_logits = context.ask(context.teacher, view)
        L_bn, L_oh, whole = self.statistics.loss(), one_hot_loss(teacher_logits, y), self.means.features()
        L_adv = torch.zeros_like(L_oh)
        if adversarial:
            with context.student_as_judge() as student:
                L_adv = adversarial_loss(teacher_logits, context.ask(student, view))
        with self.means.listening():
            context.ask(context.teacher, random_resized_crop_flip(x, rng, flip=context.spec.flip))  # x_l
        features = torch.cat([self.means.features(), whole], dim=1)
        L_cr = self.contrast(features, rng)
        loss = config.bn * L_bn + config.oh * L_oh + config.adv * L_adv + config.cr * L_cr
        terms = {"loss_bn": L_bn, "loss_oh": L_oh, "loss_adv": L_adv, "loss_cr": L_cr, "loss_generator": loss}
        context.report(terms)
        context.observe(view, teacher_logits)
        return loss, features

    def contrast(self, features: Tensor, rng: torch.Generator) -> Tensor:
        """L_cr of a batch's features (B, 2 * width) among those remembered."""
        known = torch.cat([features, self.memory.drawn(self.config.negatives, rng)])
        anchors, others = self.context.ask(self.head, torch.cat(known.chunk(2, dim=1)), "head").chunk(2)
        return contrastive_loss(anchors, others, self.config.cr_tau, len(features))

    @torch.no_grad()
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        """Of the last round's generator in eval mode; it was trained on other z: worse than a round's images."""
        shape = (count, self.config.nz)
        z = torch.randn(shape, generator=self.context.streams[stream], device=self.context.compute.device)
        self.generator.eval()
        x = torch.cat([self.context.ask(self.generator, part) for part in z.split(self.config.synthesis_batch_size)])
        self.generator.train()
        return x

    def state_dict(self) -> dict[str, Any]:
        own = {"head_optimizer": self.head_optimizer.state_dict(), "memory": self.memory.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.head_optimizer.load_state_dict(state["head_optimizer"])
        self.memory.load_state_dict(state["memory"])
