"""True classes: L_S = CE(S(x), y), for methods whose batches bring the column "labels"; the teacher is not asked."""

from torch import Tensor

from ..data.batch import Batch
from ..losses.kd import hard_loss
from ..models.classifier import Classifier
from .base import Targets


class Labels(Targets):
    """No knobs."""

    def loss(self, lesson: Batch, student: Classifier) -> Tensor:
        L_ce = hard_loss(self.context.ask(student, lesson.images), lesson.columns["labels"])
        self.context.report({"loss_ce": L_ce})
        return L_ce
