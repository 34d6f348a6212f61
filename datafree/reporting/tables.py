"""Cells laid out as tables, and these as Markdown, LaTeX or CSV."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from .results import CELL, TASK, teacher_accuracies
from .run_reader import mean_and_std

PUBLISHED = pd.read_csv(Path(__file__).with_name("published.csv"), comment="#", index_col=["data set", "pair"])
COSTS = {"seconds_synthesis": ("synthesis, s", 1), "seconds_total": ("total, s", 1)}  # measure: header, decimals
# Images through a network, forward and backward, evaluation left out.
COSTS |= {f"{name}_passes": (f"{name} passes", 0) for name in ("teacher", "student", "generator")}
COSTS |= {"peak_memory_mb": ("peak memory, MiB", 0), "images_made": ("images made", 0)}
MEASURES = ["accuracy_last", "accuracy_best", "agreement", "accuracy_teacher", *COSTS]
MATHS = str.maketrans({"<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$"})  # what pandas leaves as it is


def accuracies(frame: pd.DataFrame, measure: str, published: bool = False) -> pd.DataFrame:
    """A row a task, a column a method, and what others published; a student of real data stands in each of its rows."""
    cells = {key: accuracy_text(cell, measure) for key, cell in frame.groupby([*TASK, "label"], sort=False)}
    methods = sorted(dict.fromkeys(zip(frame.method != "scratch", frame.method, frame.label, strict=True)))
    tasks = frame.sort_values("teacher", key=lambda teacher: teacher == "", kind="stable")[TASK].drop_duplicates()
    teachers, rows, students = teacher_accuracies(frame), [], set()
    for dataset, teacher, student in tasks.itertuples(index=False):
        if not teacher and (dataset, student) in students:
            continue
        students.add((dataset, student))
        pair = " > ".join(filter(None, (teacher, student)))
        row = {"data set": dataset, "pair": pair, "teacher": teachers.get((dataset, teacher), "-")}
        for *_, label in methods:
            row[label] = cells.get((dataset, teacher, student, label), cells.get((dataset, "", student, label), "-"))
        if published:
            others = PUBLISHED.reindex([(dataset, pair)]).iloc[0]
            row |= {f"published: {source}": mean_and_std([value]) for source, value in others.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def accuracy_text(cell: pd.DataFrame, measure: str) -> str:
    """``mean ± std (n)``, with what is missing of n; agreement, called so, where a run has no test set."""
    finished = cell[cell.complete].reindex(columns=[measure, "agreement"]).astype(float)
    incomplete, values = len(cell) - len(finished), finished[measure].dropna()
    no_test_set = measure == "accuracy_last" and len(finished) > 0 and values.empty
    shown, without = (finished.agreement if no_test_set else values), len(finished) - len(values)
    count = f"{len(shown)} of {len(cell)}" if len(shown) < len(cell) else f"{len(shown)}"
    count += f", {incomplete} incomplete" * bool(incomplete)
    if no_test_set:
        return f"agreement {mean_and_std(shown)} ({count}, no test set)"
    return f"{mean_and_std(values)} ({count}{f', {without} without a test set' * bool(without)})"


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: time, memory and images made, and the machines, which the first two depend on."""
    rows = []
    for _, cell in frame.groupby(CELL, sort=False):
        finished, first = cell[cell.complete].reindex(columns=["run", *COSTS]), cell.iloc[0]
        row = {"data set": first.dataset, "pair": first.run.pair, "method": first.label, "n": len(finished)}
        row |= {header: mean_and_std(finished[name], decimals) for name, (header, decimals) in COSTS.items()}
        machines = [run.config.get("environment", {}).get("device", "not recorded") for run in finished.run]
        rows.append(row | {"on": "; ".join(dict.fromkeys(machines)) or "-"})
    return pd.DataFrame(rows)


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: every number of summary.json by mean, sample standard deviation and count; the runs behind it."""
    names = list(dict.fromkeys([*MEASURES, *frame.drop(columns="seed").select_dtypes("number")]))
    values = frame.reindex(columns=[*CELL, *names]).astype(dict.fromkeys(names, float)).groupby(CELL, sort=False)
    table = values.agg(["mean", "std", "count"])
    table.columns = ["_".join(name) for name in table]
    told = frame.assign(seeds=frame.seed.astype(str), runs=[str(run.path) for run in frame.run])
    told = told[told.complete].groupby(CELL, sort=False)[["seeds", "runs"]].agg(" ".join)
    cells = frame.groupby(CELL, sort=False).complete
    counts = pd.DataFrame({"n": cells.sum(), "incomplete": cells.size() - cells.sum()})
    return pd.concat([counts, told, table], axis=1).reset_index().rename(columns={"dataset": "data_set"})


def markdown(table: pd.DataFrame, title: str = "") -> str:
    """Text in cells, as a Markdown table; a bar in a cell does not end it."""
    escaped = table.astype(str).replace(r"\|", r"\\|", regex=True).rename(columns=lambda name: name.replace("|", r"\|"))
    lines = escaped.to_markdown(index=False, disable_numparse=True, tablefmt="github")
    lines = re.sub(":?-{3,}:?", "---", re.sub(" +", " ", lines))
    return f"**{title}**\n\n{lines}" if title else lines


def latex(table: pd.DataFrame, title: str) -> str:
    """A table environment; needs the package booktabs."""
    return table.to_latex(index=False, escape=True, caption=title.replace("%", r"\%")).translate(MATHS).strip()


def write_tables(
    frame: pd.DataFrame, notes: Sequence[str], files: Mapping[str, Path | None], published: bool = False
) -> str:
    """Writes each form, markdown, latex and csv, to the file that ``files`` has for it. Returns the Markdown."""
    over = "mean ± sample standard deviation over seeds"
    made = {
        f"Student's accuracy after the last epoch, %: {over} (n)": accuracies(frame, "accuracy_last", published),
        f"Student's best accuracy, %, chosen on test data: {over} (n)": accuracies(frame, "accuracy_best"),
        f"Time, memory and images: {over}": costs(frame),
    }
    text = "\n\n".join([markdown(table, title) for title, table in made.items()])
    text += "\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
    comments = "\n".join(["% needs \\usepackage{booktabs}", *(f"% {' '.join(note.split())}" for note in notes)])
    in_latex = "\n\n".join([comments, *(latex(table, title) for title, table in made.items())])
    forms = {"markdown": text + "\n", "latex": in_latex + "\n", "csv": numbers(frame).to_csv(index=False)}
    for form, file in files.items():
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(forms[form], encoding="utf-8")
    return text
