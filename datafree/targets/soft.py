"""Soft targets: L_S = L_kd = tau^2 * KL(softmax(T(x)/tau) || softmax(S(x)/tau)); or the mean of |T(x) - S(x)|."""

from dataclasses import dataclass

from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.batch import TEACHER_LOGITS, Batch
from ..losses.kd import distillation_loss, logit_distance
from ..models.classifier import Classifier
from .base import Targets


class Soft(Targets):
    """The teacher's softened answer."""

    @dataclass(frozen=True)
    class Config(configuration.Config):
        T: float = knob(20.0, "temperature tau of the softened answers; higher makes classes more alike", above=0)
        kd_loss: str = knob("kl", "l1: distance of the logits, without temperature", choices=("kl", "l1"))

    def loss(self, batch: Batch, student: Classifier) -> Tensor:
        L_kd = self.distillation(self.answers(batch), self.context.ask(student, batch.images))
        self.context.report({"loss_kd": L_kd})
        return L_kd

    def answers(self, batch: Batch) -> Tensor:
        """The teacher's logits on a batch, which a method may have asked for already."""
        known = batch.columns.get(TEACHER_LOGITS)
        return self.context.answers(batch.images) if known is None else known

    def distillation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """L_kd of logits (B, classes) twice, as ``--kd_loss`` asks."""
        if self.config.kd_loss == "l1":
            return logit_distance(teacher_logits.detach(), student_logits)
        return distillation_loss(teacher_logits, student_logits, self.config.T)
