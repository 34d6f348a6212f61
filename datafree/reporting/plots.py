"""Pictures of runs, in the colours of Okabe and Ito (safe for the colour-blind) and in line styles (safe in grey)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .run_reader import FinishedRun

LineStyle = str | tuple
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#000000", "-."), ("#CC79A7", (0, (5, 1, 1, 1))))


def draw_comparison(runs: Sequence[FinishedRun], path: Path) -> None:
    """Accuracy and generator loss over rounds, a line a run, and below each run's newest synthetic images."""
    figure = plt.figure(figsize=(11, 4.2 + 2.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.2, 2.2))
    accuracy, loss = above.subplots(1, 2)
    for run, (colour, style) in zip(runs, STYLES * len(runs), strict=False):
        metrics, drawn = run.metrics, {"color": colour, "linestyle": style, "label": _name(run)}
        measured = [(x, y) for x, y in zip(metrics["round"], metrics["accuracy"], strict=True) if y is not None]
        if measured:
            accuracy.plot(*zip(*measured, strict=True), **drawn)
        loss.semilogy(metrics["round"], metrics["loss_generator"], **drawn)
    accuracy.set_xlim(loss.get_xlim())
    label_axes(accuracy, "student's accuracy (%)")
    label_axes(loss, "generator loss (mean of the round)")
    accuracy.legend(loc="lower right", fontsize=9)
    for axes, run in zip(below.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        picture = run.path / "synthetic.png"
        if picture.exists():
            pixels = plt.imread(picture)
            axes.imshow(pixels[: pixels.shape[0] // 2 + 1])
        axes.set_title(_name(run), fontsize=9)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_groups(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Groups of runs as curves while these can be told apart, else as points."""
    (draw_spread if len(groups) <= len(STYLES) else draw_points)(groups, path)


def draw_points(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Accuracy after the last round, a row a group: a ring a run, a bar at their mean; runs without it are left out."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.38 * len(groups)), layout="constrained")
    for row, runs in enumerate(groups.values()):
        values = [run.summary["accuracy_last"] for run in runs if run.summary["accuracy_last"] is not None]
        axes.plot(values, [row] * len(values), "o", color=STYLES[0][0], markerfacecolor="none", markersize=7)
        if values:
            axes.plot(sum(values) / len(values), row, "|", color=STYLES[1][0], markersize=18, markeredgewidth=3)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    label_axes(axes, "", "student's accuracy after the last round (%): a ring a seed, a bar at the mean")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_spread(groups: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Accuracy and generator loss over rounds, a line a group: the mean over its runs, with their range behind it."""
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (label, runs), (colour, style) in zip(groups.items(), STYLES * len(groups), strict=False):
        for axes, column in ((accuracy, "accuracy"), (loss, "loss_generator")):
            draw_mean_and_range(axes, runs, column, colour, style, label)
    loss.set_yscale("log")
    accuracy.set_xlim(loss.get_xlim())
    label_axes(accuracy, "student's accuracy (%), mean and range")
    label_axes(loss, "generator loss (mean of the round)")
    accuracy.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_mean_and_range(
    axes: Axes, runs: Sequence[FinishedRun], column: str, colour: str, style: LineStyle, label: str
) -> None:
    """A column of metrics.csv over rounds: the mean over the runs, where each has a value, their range behind it."""
    rounds = list(zip(*(run.metrics[column] for run in runs), strict=False))
    measured = [(n, values) for n, values in enumerate(rounds, 1) if None not in values]
    if measured:
        x, y = zip(*measured, strict=True)
        axes.plot(x, [sum(values) / len(values) for values in y], color=colour, linestyle=style, label=label)
        axes.fill_between(x, list(map(min, y)), list(map(max, y)), color=colour, alpha=0.15, linewidth=0)


def _name(run: FinishedRun) -> str:
    return f"{run.config['teacher']} > {run.config['student']}, {run.config['mode']}"


def label_axes(axes: Axes, what: str, over: str = "round") -> None:
    """Names both axes and draws a light grid."""
    axes.set_xlabel(over)
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
