"""How good a student is: accuracy on real test images, and how often it says what its teacher says."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import processes
from ..data.augmentation import to_pixels
from ..data.specs import Images, TensorImages
from ..losses.kd import confidence
from ..models.classifier import Classifier
from .device import Compute

NOISE = 64  # images; chosen by us


@torch.no_grad()
def answers(
    classifier: Classifier, images: Images, compute: Compute, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) and true classes (B,) of a whole data set, in its order, on the device.

    The classifier is in eval mode meanwhile, and afterwards in the mode it came in.
    """
    was_training = classifier.training
    for levels, labels in images.batches(batch_size, compute.device):
        classifier.eval()
        with compute.autocast():
            logits = classifier(to_pixels(levels))
        classifier.train(was_training)
        yield logits, labels


def predict(classifier: Classifier, images: Images, compute: Compute, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of a whole data set, in its order: (N,) and (N,) int64 on the device."""
    predicted, true = zip(*((x.argmax(1), y) for x, y in answers(classifier, images, compute, batch_size)), strict=True)
    return torch.cat(predicted), torch.cat(true)


def near_chance(percent: float, num_classes: int) -> bool:
    """Whether so many right answers are hardly more than guessing gives: half as many again, or a tenth of the rest."""
    chance = 100 / num_classes
    return percent < min(1.5 * chance, chance + (100 - chance) / 10)


def percentage_equal(a: Tensor, b: Tensor) -> float:
    """Share of equal entries, in percent; of several processes, over all of theirs."""
    equal, count = processes.total(torch.stack([(a == b).sum(), a.new_tensor(len(a))])).tolist()
    return 100 * (equal / count)


def part_of(images: Images) -> Images:
    """What this process evaluates of them: all, where they are fewer than the processes."""
    alone = processes.size() == 1 or len(images) < processes.size()
    return images if alone else images.part(processes.rank(), processes.size())


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
        teacher: in eval mode; its predictions on the test set are made once.
        images: the test set, or None; several processes share it out.
        compute: device and precision.
        batch_size: images at a time.
    """

    def __init__(self, teacher: Classifier, images: Images | None, compute: Compute, batch_size: int = 256):
        self.teacher, self.compute, self.batch_size = teacher, compute, batch_size
        self.count, images = (0, None) if images is None else (len(images), part_of(images))
        self.images = images.to(compute.device) if isinstance(images, TensorImages) else images
        self.accuracy_teacher = None
        if self.images is None:
            noise = torch.rand(NOISE, teacher.channels, *teacher.img_size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad(), compute.autocast():
                self.confidence_teacher = 100 * confidence(teacher(noise.to(compute.device))).mean().item()
            return
        asked = (
            (x.argmax(1), y, confidence(x), x.isfinite().all(1))
            for x, y in answers(teacher, self.images, compute, batch_size)
        )
        says, truth, sure, sound = map(torch.cat, zip(*asked, strict=True))
        self._teacher_says, sure = says.where(sound, -1), sure.where(sound, 0)  # NaN is no class
        self.unsound = int(processes.total((~sound).sum()))
        self.confidence_teacher, self.accuracy_teacher = (
            100 * (processes.total(sure.sum()) / processes.total(truth.new_tensor(len(truth)))).item(),
            percentage_equal(self._teacher_says, truth),
        )

    def about_teacher(self) -> list[str]:
        """Lines for the log, before anything is trained: how good it is, and what may be wrong where it is not."""
        sure = f"mean confidence {self.confidence_teacher:.1f} %"
        if self.images is None:
            return [f"teacher: {sure} on noise (there are no test images)"]
        count, classes = self.count, self.teacher.num_classes
        lines = [f"teacher: {self.accuracy_teacher:.2f} % of {count:,} test images, {sure}"]
        if self.unsound:
            lines.append(f"warning: the teacher answers {self.unsound:,} of them with NaN or infinity - mend it")
        if near_chance(self.accuracy_teacher, classes):
            lines.append(
                f"warning: the teacher is right on {self.accuracy_teacher:.2f} % of the test images, chance is "
                f"{100 / classes:.4g} % - likely another normalisation (--teacher_mean, --teacher_std), another order "
                "of the classes, another image size or number of channels (--teacher_img_size, --teacher_channels), "
                "or weights of another network"
            )
        return lines

    def _predict(self, classifier: Classifier, images: Images) -> tuple[Tensor, Tensor]:
        return predict(classifier, images, self.compute, self.batch_size)

    def score(self, student: Classifier, fresh: TensorImages | None = None) -> Score:
        """The student as it is now. Without a test set, ``fresh`` synthetic images stand in for agreement."""
        if self.images is None:
            teacher_says, _ = self._predict(self.teacher, fresh)
            return Score(None, percentage_equal(self._predict(student, fresh)[0], teacher_says))
        student_says, truth = self._predict(student, self.images)
        return Score(percentage_equal(student_says, truth), percentage_equal(student_says, self._teacher_says))
