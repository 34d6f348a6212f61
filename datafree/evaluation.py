"""How good a student is: accuracy on real test images, and how often it says what its teacher says."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data.augment import Augmentation, to_pixels
from .data.datasets import Images, TensorImages
from .device import Compute


@torch.no_grad()
def predict(
    model: nn.Module, images: Images, augmentation: Augmentation, compute: Compute, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of a whole data set, in its order: (N,) and (N,) int64 on the device.

    The model is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    predicted, true = [], []
    for levels, labels in images.batches(batch_size, compute.device):
        with compute.autocast():
            logits = model(augmentation.normalise(to_pixels(levels)))
        predicted.append(logits.argmax(1))
        true.append(labels)
    model.train(was_training)
    return torch.cat(predicted), torch.cat(true)


def percentage_equal(a: Tensor, b: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * (a == b).double().mean().item()


@dataclass(frozen=True)
class Score:
    """Accuracy and agreement with the teacher, in percent; None where there is nothing to measure it on, or not yet."""

    accuracy: float | None
    agreement: float | None

    def beats(self, other: "Score") -> bool:
        """Whether this is the better one: by accuracy where there is one, else by agreement."""
        mine, theirs = (score.agreement if self.accuracy is None else score.accuracy for score in (self, other))
        return theirs is None or mine > theirs


NO_SCORE = Score(None, None)


class Evaluation:
    """Compares a student with the truth and with its teacher, on the test set or, without one, on synthetic images.

    Args:
        teacher: its predictions on the test set are made once.
        images: the test set, or None.
        augmentation, compute: as for the networks' other inputs.
        batch_size: images at a time.
    """

    def __init__(
        self,
        teacher: nn.Module,
        images: Images | None,
        augmentation: Augmentation,
        compute: Compute,
        batch_size: int = 256,
    ):
        self.teacher = teacher
        self.images = images.to(compute.device) if isinstance(images, TensorImages) else images
        self._arguments = (augmentation, compute, batch_size)
        self.accuracy_teacher = None
        if images is not None:
            self._teacher_says, truth = predict(teacher, images, *self._arguments)
            self.accuracy_teacher = percentage_equal(self._teacher_says, truth)

    def score(self, student: nn.Module, fresh: TensorImages | None = None) -> Score:
        """The student as it is now. Without a test set, ``fresh`` synthetic images stand in for agreement."""
        if self.images is None:
            teacher_says, _ = predict(self.teacher, fresh, *self._arguments)
            return Score(None, percentage_equal(predict(student, fresh, *self._arguments)[0], teacher_says))
        student_says, truth = predict(student, self.images, *self._arguments)
        return Score(percentage_equal(student_says, truth), percentage_equal(student_says, self._teacher_says))
