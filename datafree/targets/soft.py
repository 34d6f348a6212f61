"""Soft targets: L_S = L_kd = tau^2 * KL(softmax(T(x)/tau) || softmax(S(x)/tau))."""

from dataclasses import dataclass

from torch import Tensor

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch
from ..losses.kd import distillation_loss
from ..models.classifier import Classifier
from .base import Targets


class Soft(Targets):
    """The teacher's softened answer."""

    @dataclass(frozen=True)
    class Config(configuration.Config):
        T: float = knob(20.0, "temperature tau of the softened answers; higher makes classes more alike", above=0)

    def loss(self, batch: Batch, student: Classifier) -> Tensor:
        teacher_logits = self.context.answers(batch.images)
        L_kd = distillation_loss(teacher_logits, self.context.ask(student, batch.images), self.config.T)
        self.context.report({"loss_kd": L_kd})
        return L_kd
