"""Pictures of runs, in the colours of Okabe and Ito (safe for the colour-blind) and in line styles (safe in grey)."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from ..runs.folder import slug
from .run_reader import FinishedRun

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a dollar sign in the name of a class or column begins no formula

STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#000000", "-."), ("#CC79A7", (0, (5, 1, 1, 1))))
MARKERS = "os^Dvx"
COSTS = {"^seconds_": "seconds, evaluation included", "^teacher_passes$": "teacher passes"}  # columns of metrics.csv


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """As a PNG, in a folder that is made; the figure is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def label_axes(axes: Axes, what: str, over: str = "epoch") -> None:
    """Names both axes and draws a light grid."""
    axes.set(xlabel=over, ylabel=what)
    axes.grid(alpha=0.3)


def log_axis(axes: Axes) -> None:
    """Logarithmic where all values are above 0 and span a decade; plain numbers at 1, or at 1, 2 and 5, times ten^n."""
    low, high = axes.dataLim.intervaly
    if 0 < 10 * low < high:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def draw_accuracy_and_loss(groups: Mapping[str, Sequence[FinishedRun]], accuracy: Axes, loss: Axes) -> None:
    """Over epochs, a line a group: the mean over its runs, where each has a value, with their range behind it.

    The loss is loss_generator where a run has it, else the first that one reported.
    """
    losses = [name for runs in groups.values() for run in runs for name in run.metrics if name.startswith("loss")]
    column = losses[0] if losses and "loss_generator" not in losses else "loss_generator"
    for (label, runs), (colour, style) in zip(groups.items(), cycle(STYLES), strict=False):
        for axes, name in ((accuracy, "accuracy"), (loss, column)):
            columns = [run.metrics.set_index("epoch").get(name, pd.Series(dtype=float)) for run in runs]
            values = pd.concat(columns, axis=1).dropna() if columns else pd.DataFrame()
            if len(values):
                axes.plot(values.mean(axis=1), color=colour, linestyle=style, label=label)
                shade = {"color": colour, "alpha": 0.15, "linewidth": 0}
                axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), **shade)
    if loss.lines:
        log_axis(loss)
        accuracy.set_xlim(loss.get_xlim())
        loss.legend(loc="upper right", fontsize=9)
    label_axes(accuracy, "student's accuracy (%)")
    label_axes(loss, f"{column.removeprefix('loss_')} loss (mean of the epoch)")


def draw_comparison(runs: Sequence[FinishedRun], path: Path) -> None:
    """Accuracy and loss over epochs, a line a run, and below each run's newest synthetic images."""
    several = len({run.config["dataset"] for run in runs}) > 1
    names = [f"{slug(run.config['dataset'])}, " * several + f"{run.pair}, {run.method}" for run in runs]
    names = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    figure = plt.figure(figsize=(11, 4.2 + 2.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.2, 2.2))
    draw_accuracy_and_loss({name: [run] for name, run in zip(names, runs, strict=True)}, *above.subplots(1, 2))
    for axes, name, run in zip(below.subplots(1, len(runs), squeeze=False)[0], names, runs, strict=True):
        if (picture := run.path / "synthetic.png").exists():
            pixels = plt.imread(picture)
            axes.imshow(pixels[: pixels.shape[0] // 2 + 1])
        axes.set_title(textwrap.fill(name, 130 // len(runs)), fontsize=9)  # so many fit beside each other
        axes.axis("off")
    save(figure, path)


def draw_groups(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Groups of runs as curves while these can be told apart, else accuracy after the last epoch as points."""
    if len(groups) > len(STYLES):
        draw_points(groups, path)
        return
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_accuracy_and_loss(groups, accuracy, loss)
    accuracy.set_ylabel("student's accuracy (%), mean and range")
    save(figure, path)


def draw_costs(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Accuracy over seconds and over teacher passes, a line a group: the mean over its runs, their range behind it."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for axes, (cost, over) in zip(panels, COSTS.items(), strict=True):
        for (label, runs), (colour, style), marker in zip(groups.items(), cycle(STYLES), cycle(MARKERS), strict=False):
            curves = [curve for run in runs if len(curve := _accuracy_over(run, cost)) > 0]
            if not curves:
                continue
            ends = [(curve.index[0], curve.index[-1]) for curve in curves]
            grid = np.linspace(max(start for start, _ in ends), min(end for _, end in ends), 100)
            values = np.stack([np.interp(grid, curve.index, curve) for curve in curves])
            axes.plot(grid, values.mean(0), color=colour, linestyle=style, marker=marker, markevery=11, label=label)
            axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        label_axes(axes, "student's accuracy (%), mean and range" if axes is panels[0] else "", over)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k: longer ones run into each other
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    save(figure, path)


def _accuracy_over(run: FinishedRun, cost: str) -> pd.Series:
    """Accuracy (%) by what had been spent by then; empty where nothing was, or nothing was evaluated."""
    spent = run.metrics.filter(regex=cost).sum(axis=1).cumsum()
    known = run.metrics.get("accuracy", pd.Series(dtype=float)).dropna()
    return pd.Series(known.to_numpy(), spent[known.index]) if spent.max() > 0 else pd.Series(dtype=float)


def draw_points(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """A row a group: a ring a run, a bar at their mean; runs without accuracy are left out."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.38 * len(groups)), layout="constrained")
    for row, runs in enumerate(groups.values()):
        values = pd.Series([run.summary.get("accuracy_last") for run in runs], dtype=float).dropna()
        axes.plot(values, [row] * len(values), "o", color=STYLES[0][0], markerfacecolor="none", markersize=7)
        axes.plot(values.mean(), row, "|", color=STYLES[1][0], markersize=18, markeredgewidth=3)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    label_axes(axes, "", "student's accuracy after the last epoch (%): a ring a seed, a bar at the mean")
    save(figure, path)


def draw_images(rows: Mapping[str, Tensor], path: Path, texts: Mapping[str, Sequence[str]] | None = None) -> None:
    """Pixels in [0, 1], (n, 1 or 3, H, W) a row, any n, under its name; a short text above each, where there are."""
    columns = max(map(len, rows.values()))
    width, height = (0.95, 1.35) if texts else (0.65, 0.9)
    figure = plt.figure(figsize=(max(4.0, width * columns), height * len(rows)), layout="constrained")
    for part, (name, images) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        part.suptitle(name, fontsize=9, x=0.01, ha="left")
        cells = part.subplots(1, columns, squeeze=False)[0]
        for number, cell in enumerate(cells):
            cell.axis("off")
            if number < len(images):
                pixels = images[number].expand(3, -1, -1).permute(1, 2, 0).float().clamp(0, 1).cpu()
                cell.imshow(pixels, interpolation="nearest")
                cell.set_title(texts[name][number] if texts else "", fontsize=7)
    save(figure, path, dpi=90)
    # 128 colours make a third of the bytes, which matters in a notebook.
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
