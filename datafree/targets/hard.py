"""Hard targets: L_S = alpha * L_kd + beta * CE(S(x), label) + at * L_at, label = argmax T(x)."""

from dataclasses import dataclass

from torch import Tensor

from ..configuration import knob
from ..data.batch import TEACHER_LOGITS, Batch
from ..losses.kd import hard_loss
from ..models.classifier import Classifier
from .soft import Soft

HARD_LABELS = "hard_labels"  # a column (B,) of a lesson


def taught(images: Tensor, teacher_logits: Tensor, labels: Tensor) -> Batch:
    """A lesson: pixels (B, C, H, W), the teacher's logits on them (B, classes), hard labels (B,)."""
    return Batch(images, {TEACHER_LOGITS: teacher_logits, HARD_LABELS: labels})


class Hard(Soft):
    """The teacher's class beside its softened answer: such a label never contradicts the teacher."""

    suffix = "-hl-noaea"

    @dataclass(frozen=True)
    class Config(Soft.Config):
        alpha: float = knob(0.9, "of the softened answers' KL", low=0, unit="WEIGHT")
        beta: float = knob(0.1, "of the hard labels' cross-entropy", low=0, unit="WEIGHT")

    def lesson(self, batch: Batch) -> Batch:
        teacher_logits = self.answers(batch)
        return taught(batch.images, teacher_logits, teacher_logits.argmax(1))

    def loss(self, lesson: Batch, student: Classifier) -> Tensor:
        config, teacher_logits, labels = self.config, *(lesson.columns[name] for name in (TEACHER_LOGITS, HARD_LABELS))
        student_logits, L_at = self.of_student(lesson.images, student)
        L_kd = self.distillation(teacher_logits, student_logits)
        L_hard = hard_loss(student_logits, labels)
        contradicted = (labels != teacher_logits.argmax(1)).float().mean()
        self.context.report({"loss_kd": L_kd, "loss_hard": L_hard, "label_disagreement": contradicted})
        L_S = config.alpha * L_kd + config.beta * L_hard
        return L_S if L_at is None else L_S + config.at * L_at
