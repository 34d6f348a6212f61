"""How sure a classifier is, how often it is right when it is, and how often it contradicts the hard label it is given.

confidence c = max softmax
ECE = sum_b n_b / N * |accuracy_b - confidence_b|           over bins of equal width (Guo et al., 2017)
disagreement = share of images whose hard label is not the predicted class
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attack import confidence
from ..data.augment import Augmentation
from ..reporting.plots import STYLES, label_axes, plt

BINS = 15  # as in Guo et al.
MARKERS = "os^Dvx"


@dataclass(frozen=True)
class Judged:
    """Images, the hard labels that come with them, and what a classifier says.

    Attributes:
        x: pixels in [0, 1], (N, 3, H, W).
        labels: (N,) int64.
        predicted: (N,) int64.
        confidence: of the prediction, (N,) in [0, 1].
    """

    x: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor

    @property
    def agrees(self) -> Tensor:
        """Where the prediction is the hard label: bool (N,)."""
        return self.predicted == self.labels

    def where(self, chosen: Tensor) -> "Judged":
        """Those of a mask (N,) or of indices."""
        return Judged(self.x[chosen], self.labels[chosen], self.predicted[chosen], self.confidence[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def judge(
    model: nn.Module, augmentation: Augmentation, x: Tensor, labels: Tensor | None = None, batch_size: int = 64
) -> Judged:
    """Asks a model in eval mode about pixels x (N, 3, H, W). Without labels, its own answers are the labels."""
    logits = torch.cat([model(augmentation.normalise(part)).float() for part in x.split(batch_size)])
    predicted = logits.argmax(1)
    return Judged(x, predicted if labels is None else labels, predicted, confidence(logits))


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in (low, high]: how many, their mean confidence, the share of them that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(confidences: Tensor, right: Tensor, bins: int = BINS) -> list[Bin]:
    """The bins of equal width that hold any image: (N,) in [0, 1] and bool (N,) -> at most ``bins`` of them."""
    numbers = (confidences.double() * bins).ceil().long().clamp(1, bins) - 1
    filled = []
    for number in numbers.unique().tolist():
        inside = numbers == number
        mean, share = confidences[inside].double().mean().item(), right[inside].double().mean().item()
        filled.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), mean, share))
    return filled


def expected_calibration_error(confidences: Tensor, right: Tensor, bins: int = BINS) -> float:
    """ECE in [0, 1], see the top of the file. 0 for no images."""
    filled = reliability_bins(confidences, right, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / max(1, len(confidences))


@dataclass(frozen=True)
class Disagreement:
    """How many hard labels, of how many, are not what the classifier says."""

    count: int
    of: int

    @classmethod
    def in_(cls, judged: Judged) -> "Disagreement":
        return cls(int((~judged.agrees).sum()), len(judged))

    @property
    def rate(self) -> float:
        """In [0, 1]; 0 for no images."""
        return self.count / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate; (0, 1) for no images."""
        if not self.of:
            return 0.0, 1.0
        z2 = 1.959964**2
        centre = (self.count + z2 / 2) / (self.of + z2)
        half = sqrt(z2) * sqrt(self.count * (self.of - self.count) / self.of + z2 / 4) / (self.of + z2)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.2f} % ({self.count} of {self.of}; 95 % interval {100 * low:.2f} to {100 * high:.2f})"


def argument_for_the_hard_loss(real: Disagreement, clean: Disagreement, attacked: Disagreement, pa: float) -> str:
    """Whether these numbers bear out the three steps of the paper's argument: Markdown, a line a step.

    Args:
        real: true labels against the teacher, on real images.
        clean: the teacher's labels against the teacher, on synthetic images.
        attacked: the clean image's label against the teacher, on the same images under P, every one attacked.
        pa: share of samples that the student is shown attacked.
    """
    shown = pa * attacked.rate
    low, high = real.interval
    if shown == 0:
        place = "nothing is brought back"
    elif low <= shown <= high:
        place = "within the real rate's interval"
    else:
        place = f"{'below' if shown < low else 'above'} the real rate's interval"
    alike = f"; the real rate would take pa = {real.rate / attacked.rate:.4f}" if attacked.count and real.count else ""
    steps = [
        (real.count > 0, f"Real labels contradict the teacher now and then: {real}."),
        (clean.count == 0, f"Labels that the teacher gives to synthetic images never do, asked twice: {clean}."),
        (
            attacked.count > 0,
            f"The attack brings contradiction back: under P {attacked}; with pa = {pa:g} the student is shown "
            f"{100 * shown:.3f} %, {place}{alike}.",
        ),
    ]
    return "\n".join(
        f"{number}. {text} **{'Yes' if holds else 'No'}.**" for number, (holds, text) in enumerate(steps, 1)
    )


def confidence_table(kinds: Mapping[str, Judged]) -> str:
    """Markdown: for each kind of image n, the share that is as labelled, confidence (mean, median) and ECE."""
    lines = ["| images | n | predicted as labelled % | mean confidence | median | ECE |", "|---|---|---|---|---|---|"]
    for name, judged in kinds.items():
        if not len(judged):
            lines.append(f"| {name} | 0 | - | - | - | - |")
            continue
        c = judged.confidence
        error = expected_calibration_error(c, judged.agrees)
        share = 100 * judged.agrees.double().mean()
        lines.append(f"| {name} | {len(judged)} | {share:.1f} | {c.mean():.3f} | {c.quantile(0.5):.3f} | {error:.3f} |")
    return "\n".join(lines)


def write_judged(kinds: Mapping[str, Judged], path: Path) -> None:
    """A CSV with a line an image: kind, label, predicted, confidence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["images", "label", "predicted", "confidence"])
        for name, judged in kinds.items():
            columns = (judged.labels, judged.predicted, judged.confidence)
            writer.writerows((name, *told) for told in zip(*(column.tolist() for column in columns), strict=True))


def draw_confidence(kinds: Mapping[str, Judged], path: Path) -> None:
    """The share of each kind's images that the classifier is at most so sure of: a rising line a kind."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    filled = {name: judged for name, judged in kinds.items() if len(judged)}
    for (name, judged), (colour, style), marker in zip(filled.items(), STYLES * len(kinds), MARKERS, strict=False):
        c = judged.confidence.sort().values.tolist()
        share = [100 * number / len(c) for number in range(len(c) + 1)]
        line = {"color": colour, "linestyle": style, "marker": marker, "markevery": max(1, len(c) // 8)}
        axes.step([0, *c], share, where="post", markersize=5, label=f"{name} (n = {len(c)})", **line)
    axes.set_xlim(0, 1.01)
    label_axes(axes, "images at most that confident (%)", over="teacher's confidence")
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_reliability(kinds: Mapping[str, Judged], path: Path, bins: int = BINS) -> None:
    """Share of predictions that are as labelled over confidence, a line a kind, beside the line of the calibrated.

    A mark's size grows with the number of images in its bin.
    """
    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfectly calibrated")
    filled = {name: judged for name, judged in kinds.items() if len(judged)}
    for (name, judged), (colour, style), marker in zip(filled.items(), STYLES * len(kinds), MARKERS, strict=False):
        found = reliability_bins(judged.confidence, judged.agrees, bins)
        x, y = [b.confidence for b in found], [b.accuracy for b in found]
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1)
        sizes = [15 + 150 * b.count / len(judged) for b in found]
        error = expected_calibration_error(judged.confidence, judged.agrees, bins)
        axes.scatter(x, y, sizes, color=colour, marker=marker, alpha=0.8, label=f"{name}, ECE {error:.3f}")
    axes.set_xlim(-0.02, 1.03)
    axes.set_ylim(-0.03, 1.04)
    label_axes(axes, "share predicted as labelled", over="teacher's confidence (mean of the bin)")
    axes.legend(fontsize=8, markerscale=0.6)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
