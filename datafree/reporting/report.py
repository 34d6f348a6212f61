"""A run, or several, as one web page: numbers, curves, samples, mistakes, what was reused, configuration.

    page([examine("run/anew-digits-resnet20-resnet8", registry)])

Whatever is missing is said in its place, with the reason. The page is report.html.j2; all text in it is escaped,
nothing in it asks the network for anything, and its policy forbids it to.
"""

import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from ..errors import UserError
from . import figures as drawings
from .plots import STYLES
from .run_networks import PARTS, RunNetworks, origin_of
from .run_reader import FinishedRun, read_run
from .tables import MEASURES

BOARD_SUFFIX = ".report"  # of the file of TensorBoard events that a report adds
WORST = 10  # classes and mistakes listed; chosen by us


@dataclass
class Report:
    """What there is to say of a run."""

    run: FinishedRun
    names: list[str] = field(default_factory=list)  # of the classes
    matrices: dict[str, np.ndarray] = field(default_factory=dict)  # (C, C), of "student" and "teacher", or of "model"
    samples: str = ""  # where the synthetic images were found
    missing: list[str] = field(default_factory=list)  # why networks or images are not there
    figures: dict[str, Figure] = field(default_factory=dict)  # by TensorBoard tag; curves by "curves/" and their title

    @property
    def numbers(self) -> dict[str, Any]:
        """summary.json or, of an incomplete run, what its metrics and its networks say so far."""
        if self.run.complete:
            return dict.fromkeys(MEASURES) | self.run.summary
        metrics = self.run.metrics.reindex(columns=["accuracy", "agreement", "seconds_synthesis"])
        last, teacher = metrics.ffill().iloc[-1:].max(), self.matrices.get("teacher", np.full((1, 1), np.nan))
        numbers = {"accuracy_last": last.accuracy, "accuracy_best": metrics.accuracy.max(), "agreement": last.agreement}
        seconds = {"seconds_total": self.run.metrics.filter(regex="^seconds_").sum().sum()}
        seconds["seconds_synthesis"] = metrics.seconds_synthesis.sum()
        return numbers | seconds | {"accuracy_teacher": 100 * teacher.trace() / teacher.sum()}

    @property
    def costs(self) -> pd.DataFrame:
        """Images through each network and images made, as text: a row a purpose."""
        counts = pd.DataFrame(self.run.summary.get("costs", {})).T.fillna(0).astype(int)
        return counts.map("{:,}".format).rename(columns=lambda name: name.replace("_", " "))

    @property
    def warnings(self) -> list[str]:
        """What the run itself warned of."""
        log = self.run.path / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return [line for line in lines if line.startswith("warning:")]

    @property
    def class_accuracy(self) -> pd.DataFrame:
        """Share of each class that was called by its name, in percent, a column a network; NaN where it is empty."""
        return pd.DataFrame({label: 100 * pd.Series(m.diagonal()) / m.sum(1) for label, m in self.matrices.items()})

    @property
    def classes(self) -> pd.DataFrame:
        """Images and accuracy, as text, of every class where they are few, else of the ten of lowest accuracy."""
        shares, matrix = self.class_accuracy, next(iter(self.matrices.values()))
        if len(self.names) > drawings.NUMBERED:
            shares = shares.dropna().sort_values(shares.columns[0], kind="stable").head(WORST)
        return pd.DataFrame({"class": self.names, "images": matrix.sum(1)}).join(shares.map(percent), how="right")

    @property
    def mistakes(self) -> list[tuple[str, str, int, str]]:
        """The most frequent of the first network: (true class, predicted class, times, share of the class)."""
        matrix = next(iter(self.matrices.values()))
        wrong, images = matrix - np.diag(matrix.diagonal()), matrix.sum(1)
        worst = [divmod(int(cell), len(matrix)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:WORST]]
        shown = [(i, j, int(wrong[i, j])) for i, j in worst if wrong[i, j]]
        return [(self.names[i], self.names[j], n, percent(100 * n / images[i])) for i, j, n in shown]

    @property
    def parts(self) -> tuple[dict[str, dict], dict[str, dict]]:
        """The files of a generator that this run began with, and those that it leaves, with the origin each states."""
        given = [value for key, value in self.run.config.items() if re.fullmatch("reuse_.*_path", key) and value]
        left = [name for name in PARTS if (self.run.path / name).exists()]
        return {path: origin_of(Path(path)) for path in given}, {name: origin_of(self.run.path / name) for name in left}


def examine(path: Path | str, names: Any) -> Report:
    """Tests a run's networks, draws its figures; ``names`` is ``registry``. Raises UserError where there is no run."""
    report, images = Report(read_run(path)), None
    distilled = report.run.method != "scratch"
    try:
        networks = RunNetworks(path, names, precision=report.run.config.get("precision", "auto"))
        report.names, size = networks.class_names, networks.spec.img_size
        rows, report.samples = drawings.read_samples(report.run.path, size) if distilled else ({}, "")
        if rows:
            report.figures["samples_over_epochs"] = drawings.draw_samples(rows, size)
        images, report.missing = networks.test_images()
    except UserError as error:
        report.missing = [str(error)]
    for label in [] if images is None else ["student", "teacher"] if distilled else ["model"]:
        try:
            predicted, true = networks.predict(networks.teacher if label == "teacher" else networks.student, images)
            pairs = (len(report.names) * true + predicted).bincount(minlength=len(report.names) ** 2)
            report.matrices[label] = pairs.view(len(report.names), -1).cpu().numpy()
        except UserError as error:
            report.missing.append(str(error))
    draw(report)
    return report


def draw(report: Report) -> None:
    """Adds curves and what the matrices say to ``figures``."""
    metrics, figures = report.run.metrics, report.figures
    for title, (unit, columns) in drawings.curves_of(metrics).items():
        level = report.numbers["accuracy_teacher"] if columns[0] == "accuracy" else None
        figures[f"curves/{title}"] = drawings.draw_curve(metrics, unit, columns, level)
    for label, matrix in report.matrices.items():
        figures[f"confusion/{label}"] = drawings.draw_confusion(matrix, report.names, label)
    if report.matrices:
        figures["class_accuracy"] = drawings.draw_class_accuracy(report.class_accuracy, report.names)


def write_board(report: Report) -> int:
    """Puts the figures into a complete run's TensorBoard, in a file of their own in place of an earlier report's.

    TensorBoard reads the newest file alone, and a run that goes on writes to an older one. Returns how many there are.
    """
    figures = {tag: figure for tag, figure in report.figures.items() if not tag.startswith("curves/")}  # scalars there
    if not report.run.complete or not figures:
        return 0
    folder = report.run.path / "tensorboard"
    from torch.utils.tensorboard import SummaryWriter  # two seconds to import

    for earlier in folder.glob(f"events.out.tfevents.*{BOARD_SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(folder, filename_suffix=BOARD_SUFFIX) as board:
        for tag, figure in figures.items():
            board.add_figure(f"report/{tag}", figure, len(report.run.metrics), close=False)
    return len(figures)


def page(reports: Sequence[Report]) -> str:
    """The HTML page, one article a run, with a table above where they are several."""
    how = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **how)
    environment.filters |= {"percent": percent, "svg": svg, "quote": shlex.quote}
    known = {"common": [*MEASURES, "epochs", "rounds", "costs"], "colours": [colour for colour, _ in STYLES]}
    return environment.get_template("report.html.j2").render(reports=reports, **known)


def percent(value: float | None) -> str:
    """As ``97.50 %``; a dash for None and NaN."""
    return "–" if pd.isna(value) else f"{value:.2f} %"


def svg(figure: Figure, title: str, key: str) -> Markup:
    """A figure as inline SVG in the page's own ink, light or dark; its names are unique where ``key`` is."""
    drawn, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    # Without metadata, comments, namespaces, and the ids of groups: nothing refers to these, and each figure has them.
    markup = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->\s*", "", drawn.getvalue(), flags=re.DOTALL)
    markup = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[a-z0-9A-Z.]+_\d+"', "", markup[markup.index("<svg") :])
    size = re.search(r'viewBox="[^"]*"', markup).group()
    markup = f'<svg {size} role="img" aria-label="{escape(title)}">{markup[markup.index(">") + 1 :]}'
    for i, (colour, _) in enumerate(STYLES):
        ink = "currentColor" if colour == "#000000" else f"var(--line-{i})"
        markup = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: {ink}", markup, flags=re.IGNORECASE)
    return Markup(markup.strip())
