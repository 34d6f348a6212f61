"""Soft targets: L_S = L_kd + at * L_at,  L_kd = tau^2 * KL(softmax(T(x)/tau) || softmax(S(x)/tau)).

With --kd_loss l1 L_kd is the mean of |T(x) - S(x)|. L_at compares where teacher and student look, at each resolution
that feature maps of both have; by default it has no weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.batch import TEACHER_LOGITS, Batch
from ..engine.context import Context
from ..errors import UserError
from ..losses.kd import attention_distance, distillation_loss, logit_distance
from ..models.classifier import Classifier
from ..models.stage_maps import StageMaps
from .base import Targets


class Soft(Targets):
    """The teacher's softened answer."""

    @dataclass(frozen=True)
    class Config(configuration.Config):
        T: float = knob(
            20.0,
            "temperature tau of the softened answers; higher makes classes more alike",
            above=0,
            when={"kd_loss": ("kl",)},
        )
        kd_loss: str = knob("kl", "l1: distance of the logits, without temperature", choices=("kl", "l1"))
        at: float = knob(0.0, "weight of L_at: raise it for a student that looks where its teacher does", low=0)

    def __init__(self, context: Context, config: "Soft.Config"):
        super().__init__(context, config)
        self.maps: dict[str, StageMaps] = {}
        self._looked_at: tuple[Tensor, Tensor, dict] | None = None  # images, the teacher's logits and maps of them
        if config.at > 0:
            self.maps = {"teacher": StageMaps(context.teacher), "student": StageMaps(context.student)}
            self._check_maps()

    def lesson(self, batch: Batch) -> Batch:
        return Batch(batch.images, {TEACHER_LOGITS: self.answers(batch)})

    def loss(self, lesson: Batch, student: Classifier) -> Tensor:
        student_logits, L_at = self.of_student(lesson.images, student)
        L_kd = self.distillation(lesson.columns[TEACHER_LOGITS], student_logits)
        self.context.report({"loss_kd": L_kd})
        return L_kd if L_at is None else L_kd + self.config.at * L_at

    def answers(self, batch: Batch) -> Tensor:
        """The teacher's logits on a batch, which a method may have asked for already."""
        known = batch.columns.get(TEACHER_LOGITS)
        if known is not None:
            return known
        return self._of_teacher(batch.images)[0] if self.maps else self.context.answers(batch.images)

    def of_student(self, images: Tensor, student: Classifier) -> tuple[Tensor, Tensor | None]:
        """The student's logits (B, classes) on images, and L_at where it has a weight."""
        if not self.maps:
            return self.context.ask(student, images), None
        with self.maps["student"].listening():
            student_logits = self.context.ask(student, images)
        L_at = attention_distance(self._of_teacher(images)[1], self.maps["student"].take())
        self.context.report({"loss_at": L_at})
        return student_logits, L_at

    @torch.no_grad()
    def _of_teacher(self, images: Tensor) -> tuple[Tensor, dict]:
        """Logits and maps; asked for once where the same images come again, as ZSKT's do unless steps are recorded."""
        if self._looked_at is None or self._looked_at[0] is not images:
            with self.maps["teacher"].listening():
                logits = self.context.ask(self.context.teacher, images)
            self._looked_at = images, logits, self.maps["teacher"].take()
        return self._looked_at[1:]

    def _check_maps(self) -> None:
        """Raises UserError where teacher and student have no resolution in common."""
        noise = torch.rand(2, *self.context.spec.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.context.compute.device)
        with torch.no_grad(), self.context.student_as_judge() as student, self.maps["student"].listening():
            self.context.ask(student, noise)
        if not self._of_teacher(noise)[1].keys() & self.maps["student"].take().keys():
            raise UserError("--at: teacher and student make no feature maps of one size", "give --at 0")

    def distillation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """L_kd of logits (B, classes) twice, as ``--kd_loss`` asks."""
        if self.config.kd_loss == "l1":
            return logit_distance(teacher_logits.detach(), student_logits)
        return distillation_loss(teacher_logits, student_logits, self.config.T)
