"""Figures of one run: curves over rounds, synthetic samples, what the student confuses. Each is a matplotlib Figure.

A figure is drawn in black on nothing, so that a page may set it in its own ink; TensorBoard gets it on white.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor
from torchvision.utils import make_grid

from ..analysis.confusion import class_accuracy
from ..analysis.samples import Samples
from .plots import STYLES, label_axes

MARKERS = ("o", "s", "^", "D", "v")
NUMBERED = 20  # classes up to which a confusion matrix has its numbers in it; chosen by us
SIZE, DPI = (4.6, 3.0), 120  # inches: legible at the width of a phone


@dataclass(frozen=True)
class Curve:
    """What one pair of axes shows.

    Attributes:
        title: for whoever sets it on a page.
        unit: beside the vertical axis.
        lines: columns of metrics.csv, with what each is called; "" where the axis says it.
        log: whether the axis is logarithmic, where all values are above 0.
        percent: whether the values are shares in [0, 1], to be read in percent.
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    log: bool = False
    percent: bool = False


LEARNING_RATE = Curve("Learning rate", "learning rate of SGD", {"lr": ""})
DISTILLATION_CURVES = {
    "accuracy": Curve(
        "Accuracy and agreement", "share of images (%)", {"accuracy": "accuracy", "agreement": "agreement"}
    ),
    "loss_generator": Curve(
        "Generator loss", "mean of the round", {"loss_generator": "L, weighted", "loss_bn": "L_bn"}, log=True
    ),
    "loss_terms": Curve(
        "Class and adversarial terms", "mean of the round, unweighted", {"loss_oh": "L_oh", "loss_adv": "L_adv"}
    ),
    "loss_distillation": Curve(
        "Distillation loss",
        "mean of the round, unweighted",
        {"loss_kd": "soft (KL)", "loss_hard": "hard (CE)"},
        log=True,
    ),
    "loss_gap": Curve(
        "Loss of the attack network P", "mean of the round", {"loss_gap": "log CE to least likely class"}
    ),
    "attack_rates": Curve(
        "Attack",
        "share of samples",
        {
            "attack_success": "class changed",
            "swap_rate": "swapped",
            "attacked_rate": "attacked",
            "label_disagreement": "label contradicts teacher",
        },
        percent=True,
    ),
    "learning_rate": LEARNING_RATE,
    "seconds": Curve(
        "Time",
        "seconds a round",
        {"seconds_synthesis": "synthesis", "seconds_distillation": "distillation", "seconds_evaluation": "evaluation"},
    ),
}
TRAINING_CURVES = {
    "accuracy": Curve("Accuracy", "share of images (%)", {"accuracy": "test", "accuracy_train": "training"}),
    "loss": Curve("Training loss", "mean of the epoch", {"loss": "cross-entropy"}, log=True),
    "learning_rate": LEARNING_RATE,
    "seconds": Curve("Time", "seconds an epoch", {"seconds_training": "training", "seconds_evaluation": "evaluation"}),
}


def draw_curve(
    metrics: Mapping[str, Sequence[float | None]], curve: Curve, level: float | None = None
) -> Figure | None:
    """Its lines over the first column of the metrics; None where nothing was measured.

    Args:
        metrics: as of ``run_reader.FinishedRun``.
        curve: what to draw.
        level: a teacher's accuracy (%), drawn across.
    """
    counter = next(iter(metrics), None)
    measured = {}
    for column, label in curve.lines.items():
        points = [
            (x, y) for x, y in zip(metrics.get(counter, ()), metrics.get(column, ()), strict=False) if y is not None
        ]
        if points:
            measured[label] = tuple(zip(*points, strict=True))
    if not measured:
        return None
    figure, axes = _axes(SIZE)
    for (label, (x, y)), (colour, style), marker in zip(measured.items(), STYLES, MARKERS, strict=False):
        every = max(1, len(x) // 8)
        axes.plot(x, y, color=colour, linestyle=style, marker=marker, markevery=every, markersize=4, label=label)
    if level is not None:
        axes.axhline(level, color="#000000", linewidth=0.8, linestyle=(0, (1, 2)), label=f"teacher {level:.2f} %")
    if curve.log and all(value > 0 for _, y in measured.values() for value in y):
        _plain_log_axis(axes)
    if curve.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, curve.unit, counter)
    if any(measured):
        handles, labels = axes.get_legend_handles_labels()
        columns = 2 if len(labels) == 4 else 3
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9, frameon=False)
    return figure


def _plain_log_axis(axes: Axes) -> None:
    """Logarithmic, with ticks at powers of ten or, within two of them, at 1, 2 and 5, as plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_samples(samples: Samples) -> Figure:
    """A row of images for each label."""
    rows, columns, *_ = samples.images.shape
    pixels = _at_most(samples.images.flatten(0, 1), 64)
    gap = max(1, pixels.shape[-1] // 16)
    grid = make_grid(pixels, nrow=columns, padding=gap).permute(1, 2, 0).numpy()
    opaque = make_grid(pixels[:, :1] * 0 + 255, nrow=columns, padding=gap).permute(1, 2, 0).numpy()[..., :1]
    figure, axes = _axes((4.8, 0.2 + 4.0 * grid.shape[0] / grid.shape[1]), "compressed")
    axes.imshow(np.concatenate((grid, opaque), axis=2), interpolation="none")
    step = pixels.shape[-2] + gap
    axes.set_yticks([gap + pixels.shape[-2] / 2 + row * step for row in range(rows)], samples.labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _at_most(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W), made smaller by whole factors until a side is at most about ``size`` pixels."""
    factor = images.shape[-1] // size
    if factor < 2:
        return images
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(images.float(), factor).round().to(images.dtype)


def draw_confusion(matrix: Tensor, names: Sequence[str], what: str = "student") -> Figure:
    """Each true class's images by what they were called, as a share of the class; counts in the cells where few."""
    shares = (100 * matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    few = len(names) <= NUMBERED
    figure, axes = _axes((4.8, 4.3))
    image = axes.imshow(shares, cmap=_SHADES, norm=PowerNorm(0.5, 0, 100), interpolation="none")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("share of the true class (%), square-root scale")
    if few:
        for (true, predicted), count in np.ndenumerate(matrix.numpy()):
            if count:
                ink = "#ffffff" if shares[true, predicted] > 30 else "#000000"
                axes.text(
                    predicted,
                    true,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=8 if len(names) <= 10 else 6,
                    color=ink,
                )
        _name_ticks(axes.xaxis, names)
        _name_ticks(axes.yaxis, names)
    axes.set_xlabel(f"what the {what} says" + ("" if few else " (class index)"))
    axes.set_ylabel("true class" + ("" if few else " (index)"))
    return figure


_SHADES = LinearSegmentedColormap.from_list("shades", [(0.0, 0.447, 0.698, 0.0), (0.0, 0.447, 0.698, 1.0)])


def draw_class_accuracy(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Accuracy of each class for one or two classifiers, by name, on the same images.

    Few classes keep their order and names; many are sorted by the first classifier's accuracy.
    """
    accuracies = {label: class_accuracy(matrix).numpy() for label, matrix in matrices.items()}
    few = len(names) <= NUMBERED
    first = next(iter(accuracies.values()))
    order = np.arange(len(names)) if few else np.argsort(first, kind="stable")
    figure, axes = _axes((4.8, 3.4))
    for (label, values), (colour, _), marker in reversed(list(zip(accuracies.items(), STYLES, MARKERS, strict=False))):
        hollow = values is not first
        dots = {"color": colour, "marker": marker, "linestyle": "none", "label": label, "markersize": 7 if few else 4}
        axes.plot(values[order], **dots, markerfacecolor="none" if hollow else colour)
    if few:
        _name_ticks(axes.xaxis, names)
    label_axes(axes, "accuracy (%)", "class" if few else f"classes, sorted by the {next(iter(accuracies))}'s accuracy")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _name_ticks(axis: Axis, names: Sequence[str], longest: int = 16) -> None:
    """A tick a class, aslant where names are long; a dollar sign in a name begins no formula."""
    short = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    axis.set_ticks(range(len(names)), short)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)
        if axis.axis_name == "x" and max(map(len, short)) > 3:
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def _axes(inches: tuple[float, float], layout: str = "constrained") -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, dpi=DPI, layout=layout)
    return figure, figure.add_subplot()
