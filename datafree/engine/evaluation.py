"""How good a student is: accuracy on real test images, and how often it says what its teacher says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.augmentation import to_pixels
from ..data.specs import Images, TensorImages
from ..models.classifier import Classifier
from .device import Compute


@torch.no_grad()
def predict(classifier: Classifier, images: Images, compute: Compute, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of a whole data set, in its order: (N,) and (N,) int64 on the device.

    The classifier is left in the mode it came in.
    """
    was_training = classifier.training
    classifier.eval()
    predicted, true = [], []
    for levels, labels in images.batches(batch_size, compute.device):
        with compute.autocast():
            predicted.append(classifier(to_pixels(levels)).argmax(1))
        true.append(labels)
    classifier.train(was_training)
    return torch.cat(predicted), torch.cat(true)


def percentage_equal(a: Tensor, b: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * (a == b).double().mean().item()


@dataclass(frozen=True)
class Score:
    """Accuracy and agreement with the teacher, in percent; None where there is nothing to measure it on, or not yet."""

    accuracy: float | None = None
    agreement: float | None = None

    def beats(self, other: "Score") -> bool:
        """Whether this is the better one: by accuracy where there is one, else by agreement."""
        mine, theirs = (score.agreement if self.accuracy is None else score.accuracy for score in (self, other))
        return theirs is None or mine > theirs


class Evaluation:
    """Compares a student with the truth and with its teacher, on the test set or, without one, on synthetic images.

    Args:
        teacher: its predictions on the test set are made once.
        images: the test set, or None.
        compute: device and precision.
        batch_size: images at a time.
    """

    def __init__(self, teacher: Classifier, images: Images | None, compute: Compute, batch_size: int = 256):
        self.teacher, self.compute, self.batch_size = teacher, compute, batch_size
        self.images = images.to(compute.device) if isinstance(images, TensorImages) else images
        self.accuracy_teacher = None
        if self.images is not None:
            self._teacher_says, truth = self._predict(teacher, self.images)
            self.accuracy_teacher = percentage_equal(self._teacher_says, truth)

    def _predict(self, classifier: Classifier, images: Images) -> tuple[Tensor, Tensor]:
        return predict(classifier, images, self.compute, self.batch_size)

    def score(self, student: Classifier, fresh: TensorImages | None = None) -> Score:
        """The student as it is now. Without a test set, ``fresh`` synthetic images stand in for agreement."""
        if self.images is None:
            teacher_says, _ = self._predict(self.teacher, fresh)
            return Score(None, percentage_equal(self._predict(student, fresh)[0], teacher_says))
        student_says, truth = self._predict(student, self.images)
        return Score(percentage_equal(student_says, truth), percentage_equal(student_says, self._teacher_says))
