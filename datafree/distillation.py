"""Distillation steps on the pool: the student learns the teacher's softened answers; with the hard loss, its classes.

for each of kd_steps
    x <- B images of the pool, uniform with replacement;  x~ <- normalise(augment(x))
    L_kd = tau^2 * KL(softmax(T(x~)/tau) || softmax(S(x~)/tau))
    L_S  = L_kd                                          without the hard loss
    L_S  = alpha * L_kd + beta * CE(S(x~), label)        with it: label = argmax T(x~), and with the attack
                                                         that of the clean sample where x is an attacked one
    S <- SGD(lr), lr falls along a cosine over all distillation steps
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from .attack import Attack, choose_attacked, mix
from .data.augment import Augmentation, to_pixels
from .data.pool import Drawn, ImagePool
from .device import Compute
from .losses import distillation_loss, hard_loss
from .randomness import Streams
from .readings import Readings


@dataclass(frozen=True)
class DistillationSettings:
    """The knobs of distillation, named as on the command line; ``total_steps`` is the cosine's length."""

    batch_size: int
    lr: float
    lr_min: float
    momentum: float
    weight_decay: float
    T: float
    hl: bool
    alpha: float
    beta: float
    total_steps: int

    @classmethod
    def of(cls, args: Namespace, total_steps: int) -> "DistillationSettings":
        """From the command line's values of the same names."""
        named = (field.name for field in fields(cls) if field.name != "total_steps")
        return cls(total_steps=total_steps, **{name: getattr(args, name) for name in named})


@dataclass(frozen=True)
class Sample:
    """What a step learns from: classifier input (B, 3, H, W), the teacher's logits on it (B, C), hard labels (B,).

    ``rates`` are the attack's shares of the batch, to report.
    """

    x: Tensor
    teacher_logits: Tensor
    labels: Tensor
    rates: dict[str, Tensor] = field(default_factory=dict)


class Distillation:
    """Trains the student on the pool. Draws from the stream "distillation", for the attack from "attack".

    Args:
        teacher: frozen and in eval mode.
        student: trained in place.
        settings: the knobs.
        augmentation: pixels to classifier input.
        compute: device and precision.
        streams: random streams.
        attack: what makes hard labels contradict the teacher now and then, or None.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: DistillationSettings,
        augmentation: Augmentation,
        compute: Compute,
        streams: Streams,
        attack: Attack | None = None,
    ):
        self.teacher, self.student, self.augmentation = teacher, student, augmentation
        self.settings, self.compute, self.streams, self.attack = settings, compute, streams, attack
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, max(1, settings.total_steps), eta_min=settings.lr_min
        )

    @property
    def lr(self) -> float:
        """Of the next step."""
        return self.scheduler.get_last_lr()[0]

    def run(self, pool: ImagePool, steps: int) -> Readings:
        """That many steps; returns the unweighted terms of each, and the last one's learning rate."""
        self.student.train()
        readings = Readings()
        upcoming = self._request(pool)
        for left in reversed(range(steps)):
            sample = self._sample(upcoming())
            if left:
                upcoming = self._request(pool)  # read while this step computes
            readings.add(self._step(sample))
            readings.note("lr", self.lr)
            self.scheduler.step()
        return readings

    def _request(self, pool: ImagePool) -> Callable[[], Drawn]:
        return pool.request(self.settings.batch_size, self.streams.on_host("distillation"))

    @torch.no_grad()
    def _sample(self, drawn: Drawn) -> Sample:
        if self.attack is None:
            x = self._augmented(drawn.images)
            teacher_logits = self._ask_teacher(x)
            return Sample(x, teacher_logits, teacher_logits.argmax(1))
        settings = self.attack.settings
        attacked = choose_attacked(len(drawn.images), settings.pa, self.streams["attack"], self.compute.device)
        return self._attacked_in_pool(drawn, attacked) if self.attack.in_pool else self._attacked_now(drawn, attacked)

    def _attacked_in_pool(self, drawn: Drawn, attacked: Tensor) -> Sample:
        """Twins and labels come with the images; a twin is cropped and flipped like any image."""
        x = self._augmented(mix(drawn.images, drawn.twins, attacked))
        teacher_logits = self._ask_teacher(x)
        labels = mix(teacher_logits.argmax(1), drawn.labels, attacked)
        return Sample(x, teacher_logits, labels, {"attacked_rate": attacked.float().mean()})

    def _attacked_now(self, drawn: Drawn, attacked: Tensor) -> Sample:
        """The whole batch is attacked anew: as published, and dearer than all the rest of the step."""
        pair, swapped = self.attack.swapped_pair(self._augmented(drawn.images))
        x = mix(pair.clean_images, pair.attacked_images, attacked)
        rates = {"attack_success": pair.succeeded, "swap_rate": swapped, "attacked_rate": attacked}
        rates = {name: chosen.float().mean() for name, chosen in rates.items()}
        return Sample(x, mix(pair.clean_logits, pair.attacked_logits, attacked), pair.labels, rates)

    def _augmented(self, levels: Tensor) -> Tensor:
        return self.augmentation(to_pixels(levels), self.streams["distillation"])

    def _ask_teacher(self, x: Tensor) -> Tensor:
        with self.compute.autocast():
            return self.teacher(x)

    def _step(self, sample: Sample) -> dict[str, Tensor]:
        """One SGD step; returns the unweighted terms."""
        with self.compute.autocast():
            student_logits = self.student(sample.x)
        loss = L_kd = distillation_loss(sample.teacher_logits, student_logits, self.settings.T)
        terms = {"loss_kd": L_kd.detach()}
        if self.settings.hl:
            L_hard = hard_loss(student_logits, sample.labels)
            loss = self.settings.alpha * L_kd + self.settings.beta * L_hard
            contradicted = sample.labels != sample.teacher_logits.argmax(1)
            terms |= {"loss_hard": L_hard.detach(), "label_disagreement": contradicted.float().mean()}
        terms |= sample.rates
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return terms

    def state_dict(self) -> dict:
        """All that the next step depends on, the random streams apart."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
