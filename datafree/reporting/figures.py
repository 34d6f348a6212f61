"""Figures of one run: curves over epochs, synthetic samples, what the student confuses. Each is a matplotlib Figure.

A figure is drawn in black on nothing, so that a page may set it in its own ink; TensorBoard gets it on white.
"""

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from ..data.specs import Size
from .plots import MARKERS, STYLES, label_axes, log_axis

NUMBERED = 20  # classes up to which a confusion matrix has its numbers in it; chosen by us
EPOCHS = 10  # whose samples are shown, at most; chosen by us
PERCENT = ("accuracy", "accuracy_train", "agreement")
_SHADES = LinearSegmentedColormap.from_list("shades", [(0.0, 0.447, 0.698, 0.0), (0.0, 0.447, 0.698, 1.0)])


def curves_of(metrics: pd.DataFrame) -> dict[str, tuple[str, list[str]]]:
    """By title, the unit and the columns of each pair of axes: every column with any value, whatever was reported."""
    metrics = metrics.drop(columns=["epoch", "round", "teacher_passes"], errors="ignore")
    columns = [name for name in metrics if metrics[name].notna().any()]
    seconds = [name for name in columns if name.startswith("seconds_")]
    losses = [name for name in columns if name.startswith("loss")]
    rest = [name for name in columns if name not in (*PERCENT, *seconds, *losses, "lr")]
    shares = [name for name in rest if metrics[name].dropna().between(0, 1).all()]
    curves = {"Accuracy and agreement": ("share of images (%)", [name for name in PERCENT if name in columns])}
    curves |= {_words(name).capitalize(): (f"{name}, mean of the epoch", [name]) for name in losses}
    curves |= {"Shares": ("share", shares)}
    curves |= {_words(name).capitalize(): (name, [name]) for name in rest if name not in shares}
    curves |= {"Learning rate": ("lr", ["lr"] * ("lr" in columns)), "Time": ("seconds an epoch", seconds)}
    return {title: curve for title, curve in curves.items() if curve[1]}


def _words(name: str) -> str:
    return name.removeprefix("seconds_").replace("_", " ")


def draw_curve(metrics: pd.DataFrame, unit: str, columns: list[str], level: float | None = None) -> Figure:
    """What ``curves_of`` names, over epochs, and a teacher's accuracy (%) as a level across."""
    figure, axes = _axes((4.6, 3.0))
    for name, (colour, style), marker in zip(columns, cycle(STYLES), cycle(MARKERS), strict=False):
        points = metrics[["epoch", name]].dropna()
        line = {"color": colour, "linestyle": style, "marker": marker, "markevery": max(1, len(points) // 8)}
        axes.plot(points.epoch, points[name], **line, markersize=4, label=_words(name))
    if level is not None:
        axes.axhline(level, color="#000000", linewidth=0.8, linestyle=(0, (1, 2)), label=f"teacher {level:.2f} %")
    if columns[0].startswith("loss"):
        log_axis(axes)
    if unit == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, unit)
    if not unit.startswith(columns[0]):  # which would name the only line
        figure.legend(loc="outside upper left", ncols=2 if len(axes.get_lines()) > 3 else 3, fontsize=9, frameon=False)
    return figure


def read_samples(folder: Path, size: Size) -> tuple[dict[str, np.ndarray], str]:
    """By "epoch 12", the upper row of the grid of images of that size that a run showed; where it was found.

    Evenly spaced epochs of its TensorBoard, first and last among them; without, the newest, if there is one.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})  # 0: all of them
    if (folder / "tensorboard").is_dir() and "synthetic" in events.Reload().Tags()["images"]:
        found = {f"epoch {event.step}": event.encoded_image_string for event in events.Images("synthetic")}
        source = "the image grids in TensorBoard"
    else:
        newest, source = folder / "synthetic.png", "the newest batch (synthetic.png); earlier ones were not kept"
        found = {"newest": newest.read_bytes()} if newest.exists() else {}
    places = np.linspace(0, len(found) - 1, min(EPOCHS, len(found))).round().astype(int)
    grids = [(label, Image.open(io.BytesIO(found[label])).convert("RGBA")) for label in np.array(list(found))[places]]
    return {str(label): np.asarray(grid)[: size[0] + 1] for label, grid in grids}, source


def draw_samples(rows: dict[str, np.ndarray], size: Size) -> Figure:
    """Rows of images of that size with lines of one pixel between them, which become transparent."""
    width = min(pixels.shape[1] for pixels in rows.values())
    grid = np.concatenate([pixels[:, :width] for pixels in rows.values()])
    grid[:: size[0] + 1, :, 3] = grid[:, :: size[1] + 1, 3] = 0
    figure, axes = _axes((4.8, 0.2 + 4.0 * grid.shape[0] / grid.shape[1]), "compressed")
    step = max(1, max(size) // 64)  # of large images some of the pixels are enough
    axes.imshow(grid[::step, ::step], interpolation="none", extent=(0, width, len(grid), 0))
    axes.set_yticks([(row + 0.5) * (size[0] + 1) for row in range(len(rows))], list(rows))
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def draw_confusion(matrix: np.ndarray, names: Sequence[str], what: str = "student") -> Figure:
    """Shares of each true class (a row of counts (C, C)) by what it was called; counts in the cells where few."""
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(names) <= NUMBERED
    figure, axes = _axes((4.8, 4.3))
    image = axes.imshow(shares, cmap=_SHADES, norm=PowerNorm(0.5, 0, 100), interpolation="none")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("share of the true class (%), square-root scale")
    if few:
        style = {"ha": "center", "va": "center", "fontsize": 8 if len(names) <= 10 else 6}
        for true, predicted in np.argwhere(matrix):
            ink = "#ffffff" if shares[true, predicted] > 30 else "#000000"
            axes.text(predicted, true, str(matrix[true, predicted]), color=ink, **style)
        _name_ticks(axes.xaxis, names)
        _name_ticks(axes.yaxis, names)
    index = "" if few else " (class index)"
    axes.set(xlabel=f"what the {what} says{index}", ylabel=f"true class{index}")
    return figure


def draw_class_accuracy(accuracies: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Accuracy (%) of each class, a column a classifier; many classes are sorted by that of the first."""
    few, first = len(names) <= NUMBERED, accuracies.columns[0]
    table = accuracies if few else accuracies.sort_values(first, kind="stable")
    figure, axes = _axes((4.8, 3.4))
    for label, (colour, _), marker in list(zip(table, STYLES, MARKERS, strict=False))[::-1]:
        dots = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 7 if few else 4}
        axes.plot(table[label].to_numpy(), **dots, label=label, markerfacecolor=colour if label == first else "none")
    if few:
        _name_ticks(axes.xaxis, names)
    label_axes(axes, "accuracy (%)", "class" if few else f"classes, sorted by the {first}'s accuracy")
    figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False, reverse=True)
    return figure


def _name_ticks(axis: Axis, names: Sequence[str], longest: int = 16) -> None:
    """A tick a class, aslant where names are long."""
    short = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    axis.set_ticks(range(len(names)), short)
    if axis.axis_name == "x" and max(map(len, short)) > 3:
        axis.set_tick_params(rotation=45, rotation_mode="xtick")


def _axes(inches: tuple[float, float], layout: str = "constrained") -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, dpi=120, layout=layout)
    return figure, figure.add_subplot()
