"""Distillation steps on the pool: the student learns the teacher's softened answers.

for each of kd_steps
    x <- B images of the pool, uniform with replacement;  x~ <- normalise(augment(x))
    L_S = tau^2 * KL(softmax(T(x~)/tau) || softmax(S(x~)/tau))
    S <- SGD(lr), lr falls along a cosine over all distillation steps
"""

from argparse import Namespace
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from .data.augment import Augmentation, to_pixels
from .data.pool import ImagePool
from .device import Compute
from .errors import check_finite
from .losses import distillation_loss
from .randomness import Streams


@dataclass(frozen=True)
class DistillationSettings:
    """The knobs of distillation, named as on the command line; ``total_steps`` is the cosine's length."""

    batch_size: int
    lr: float
    lr_min: float
    momentum: float
    weight_decay: float
    T: float
    total_steps: int

    @classmethod
    def of(cls, args: Namespace, total_steps: int) -> "DistillationSettings":
        """From the command line's values of the same names."""
        named = (field.name for field in fields(cls) if field.name != "total_steps")
        return cls(total_steps=total_steps, **{name: getattr(args, name) for name in named})


class Distillation:
    """Trains the student on the pool. Draws from the stream "distillation" alone.

    Args:
        teacher: frozen and in eval mode.
        student: trained in place.
        settings: the knobs.
        augmentation: pixels to classifier input.
        compute: device and precision.
        streams: random streams.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: DistillationSettings,
        augmentation: Augmentation,
        compute: Compute,
        streams: Streams,
    ):
        self.teacher, self.student, self.augmentation = teacher, student, augmentation
        self.settings, self.compute, self.streams = settings, compute, streams
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
        return self.scheduler.get_last_lr()[0]

    def run(self, pool: ImagePool, steps: int) -> dict[str, float]:
        """That many steps; returns the mean of each unweighted term and the last step's learning rate.

        Raises:
            NotFiniteError: if a term became NaN or infinite.
        """
        self.student.train()
        history = []
        for _ in range(steps):
            lr = self.lr
            history.append(self._step(pool))
            self.scheduler.step()
        losses = torch.stack(history).cpu()  # the round's one transfer from the device
        check_finite(losses[:, None], ["loss_kd"])
        return {"loss_kd": losses.mean().item(), "lr": lr}

    def _step(self, pool: ImagePool) -> Tensor:
        rng = self.streams["distillation"]
        x = to_pixels(pool.draw(self.settings.batch_size, rng))  # (B, 3, H, W)
        augmented = self.augmentation(x, rng)
        with self.compute.autocast():
            with torch.no_grad():
                teacher_logits = self.teacher(augmented)
            student_logits = self.student(augmented)
        loss = distillation_loss(teacher_logits, student_logits, self.settings.T)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

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
