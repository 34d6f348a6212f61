"""Cells laid out as tables, and these as Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .published import PUBLISHED
from .results import SCRATCH, Cell, Task, spread, teacher_accuracies
from .run_reader import mean_and_std

MEASURES = (
    *("accuracy_last", "accuracy_best", "agreement", "accuracy_teacher"),
    *("seconds_synthesis", "seconds_total", "peak_memory_mb", "images"),
)
COSTS = {  # header: measure, decimals
    "synthesis, s": ("seconds_synthesis", 1),
    "total, s": ("seconds_total", 1),
    "peak memory, MiB": ("peak_memory_mb", 0),
    "images made": ("images", 0),
}
LATEX = str.maketrans({letter: f"\\{letter}" for letter in "&%$#_{}"} | {letter: f"${letter}$" for letter in "<>|"})
LATEX |= str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
)


@dataclass(frozen=True)
class Table:
    """Text in rows under a header, with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(map(_one_cell, line))} |" for line in lines)])

    def latex(self) -> str:
        """A table environment; needs the package booktabs."""
        header, *rows = (
            " & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (self.header, *self.rows)
        )
        return "\n".join(
            [
                *(r"\begin{table}", r"\centering", rf"\caption{{{self.title.translate(LATEX)}}}"),
                *(rf"\begin{{tabular}}{{{'l' * len(self.header)}}}", r"\toprule", header, r"\midrule", *rows),
                *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
            ]
        )


def _one_cell(text: str) -> str:
    return text.replace("|", "\\|")


def tables(cells: Sequence[Cell], published: bool = False) -> list[Table]:
    """The headline, the best accuracies and the costs; with ``published``, what others published beside the first."""
    over = "mean ± sample standard deviation over seeds (n)"
    return [
        accuracies(cells, "accuracy_last", f"Student's accuracy after the last round, %: {over}", published),
        accuracies(cells, "accuracy_best", f"Student's best accuracy, %, chosen on test data: {over}"),
        costs(cells),
    ]


def accuracies(cells: Sequence[Cell], measure: str, title: str, published: bool = False) -> Table:
    """A row a task, a column a method; a student trained on real data stands in the row of every task that it has."""
    columns = list(dict.fromkeys(cell.label for cell in sorted(cells, key=lambda cell: cell.method != SCRATCH)))
    distilled = dict.fromkeys(cell.task for cell in cells if cell.method != SCRATCH)
    students = {(task.dataset, task.student) for task in distilled}
    alone = [cell.task for cell in cells if (cell.task.dataset, cell.task.student) not in students]
    rows = []
    for task in [*distilled, *dict.fromkeys(alone)]:
        found = {cell.label: cell for cell in cells if cell.task in (task, Task(task.dataset, None, task.student))}
        teachers = ", ".join(f"{value:.2f}" for value in teacher_accuracies(cells, task.dataset, task.teacher))
        row = [task.dataset, task.pair, teachers or "-"]
        row += [accuracy_text(found[label], measure) if label in found else "-" for label in columns]
        rows.append(row + [_or_dash(values.get(task)) for values in PUBLISHED.values()] * published)
    header = ["data set", "pair", "teacher", *columns]
    return Table(title, header + [f"published: {source}" for source in PUBLISHED] * published, rows)


def accuracy_text(cell: Cell, measure: str) -> str:
    """``mean ± std (n)``, with what is missing of n; agreement, called so, where a run has no test set."""
    values = cell.values(measure)
    if measure == "accuracy_last" and cell.runs and not any(value is not None for value in values):
        return f"agreement {mean_and_std(cell.values('agreement'))} ({_count(cell, len(cell.runs))}, no test set)"
    present = [value for value in values if value is not None]
    without = f", {len(cell.runs) - len(present)} without a test set" if len(present) < len(cell.runs) else ""
    return f"{mean_and_std(present)} ({_count(cell, len(present))}{without})"


def _count(cell: Cell, counted: int) -> str:
    """``3``, or ``2 of 3, 1 incomplete``."""
    incomplete = len(cell.incomplete)
    planned = len(cell.runs) + incomplete
    return (f"{counted} of {planned}" if counted < planned else f"{counted}") + (
        f", {incomplete} incomplete" if incomplete else ""
    )


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def costs(cells: Sequence[Cell]) -> Table:
    """A row a cell: time, memory and images made, and the machines, which the first two depend on."""
    rows = []
    for cell in cells:
        numbers = [mean_and_std(cell.values(measure), decimals) for measure, decimals in COSTS.values()]
        machines = dict.fromkeys(run.config.get("environment", {}).get("device", "not recorded") for run in cell.runs)
        rows.append(
            [cell.task.dataset, cell.task.pair, cell.label, f"{len(cell.runs)}", *numbers, "; ".join(machines) or "-"]
        )
    header = ["data set", "pair", "method", "n", *COSTS, "on"]
    return Table("Time, memory and images: mean ± sample standard deviation over seeds", header, rows)


def markdown(made: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, and the notes below them."""
    return "\n\n".join(
        [*(table.markdown() for table in made), *["\n".join(f"- {note}" for note in notes)] * bool(notes)]
    )


def latex(made: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, to be put into a document that loads booktabs; the notes above them as comments."""
    said = ["% needs \\usepackage{booktabs}", *(f"% {' '.join(note.split())}" for note in notes)]
    return "\n\n".join(["\n".join(said), *(table.latex() for table in made)])


def comma_separated(cells: Sequence[Cell]) -> str:
    """A line a cell: every measure's mean, sample standard deviation and count, unrounded, and the runs behind it."""
    lines = io.StringIO(newline="")
    columns = [f"{measure}_{part}" for measure in MEASURES for part in ("mean", "std", "n")]
    writer = csv.writer(lines, lineterminator="\n")
    tell = ["data set", "teacher", "student", "method", "setting", "n", "seeds", "incomplete", *columns, "runs"]
    writer.writerow(name.replace(" ", "_") for name in tell)
    for cell in cells:
        seeds = " ".join(str(run.config["seed"]) for run in cell.runs)
        numbers = [part for measure in MEASURES for part in spread(cell.values(measure))]
        told = [*cell.task, cell.method, cell.setting, len(cell.runs), seeds, len(cell.incomplete), *numbers]
        writer.writerow([*told, " ".join(str(run.path) for run in cell.runs)])
    return lines.getvalue()


def write_tables(
    cells: Sequence[Cell], notes: Sequence[str], files: Mapping[str, Path | None], published: bool = False
) -> str:
    """Writes each form, markdown, latex and csv, to the file that ``files`` has for it. Returns the Markdown."""
    made = tables(cells, published)
    text = markdown(made, notes)
    forms = {"markdown": text + "\n", "latex": latex(made, notes) + "\n", "csv": comma_separated(cells)}
    for form, file in files.items():
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(forms[form], encoding="utf-8")
    return text
