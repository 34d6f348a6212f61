"""Methods on one task at one budget, over seeds: a table of accuracy and cost, and accuracy over seconds and passes.

    python scripts/compare_methods.py                                digits, resnet20 > resnet8, all methods, 60 s a run
    python scripts/compare_methods.py --methods fast "K 2: --method fast --g_steps 2" --budget_seconds 300 --seeds 0 1

A method is its name or, with flags of its own, ``label: flags``. Runs that are complete are kept, others go on where
they stopped; what cannot run on the task is named below the table with what it said. A pass is one image through the
teacher, forward or backward, for synthesis or distillation. With --jobs runs share a machine: no measure of time.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd
from ablation import Cell, Groups, plan, run_all, sources, split
from launching import add_flags, told

from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.reporting.plots import draw_costs
from datafree.reporting.run_reader import mean_and_std
from datafree.reporting.tables import markdown
from datafree.runs.stopping import Stopped
from registry import METHODS

NUMBERS = {  # header: of a run's summary, in which unit, with how many decimals
    "last %": ("accuracy_last", 1, 2),
    "best %": ("accuracy_best", 1, 2),
    "teacher passes, k": ("teacher_passes", 1000, 0),
    "student's, k": ("student_passes", 1000, 0),
    "generator's, k": ("generator_passes", 1000, 0),
    "synthesis s": ("seconds_synthesis", 1, 1),
    "total s": ("budget_spent", 1, 1),
    "memory MiB": ("peak_memory_mb", 1, 0),
    "images made, k": ("images_made", 1000, 1),
    "epochs": ("epochs", 1, 1),
}


def main(argv: list[str]) -> None:
    args = arguments(argv)
    budget = ["--budget_seconds", str(args.budget_seconds)]
    if args.budget_teacher_passes:
        budget = ["--budget_teacher_passes", str(args.budget_teacher_passes)]
    task = ["--dataset", args.dataset, "--teacher", args.teacher, "--student", args.student, *budget]
    if args.teacher_path:
        task += ["--teacher_path", str(args.teacher_path)]
    named = [method if ": " in method else f"{labelled(method)}: --method {method}" for method in args.methods]
    settings = {label: f"{shlex.join(task)} {args.flags} {flags}" for label, flags in split(named)}
    planned = {(label, seed): flags for seed in args.seeds for label, flags in settings.items()}
    jobs = plan(planned, args)
    if args.dry_run:
        print(*told(list(jobs), args), sep="\n")
        return
    groups: Groups = {label: [] for label in settings}
    failed: dict[Cell, str] = {}
    try:
        failed = run_all(jobs, args, groups, keep_going=True)
    except Stopped:
        print("\ninterrupted; finished so far:", flush=True)
        report(groups, failed, args)
        raise
    report(groups, failed, args)
    if not any(groups.values()):
        raise UserError("no run came to its end", "see what they said")


def labelled(method: str) -> str:
    """What stands in the table: of FILE.py:CLASS the class."""
    return method.rsplit(":", 1)[-1]


def arguments(argv: list[str]) -> Namespace:
    """Of the command line."""
    parser = Parser(prog="compare_methods.py", description="Methods on one task at one budget, over seeds.")
    text = {"metavar": "NAME"}
    parser.add_argument("--methods", nargs="+", default=[*METHODS], metavar="NAME|'LABEL: FLAGS'", help="what to run")
    parser.add_argument("--dataset", default="digits", help="see main.py", **text)
    parser.add_argument("--teacher", default="resnet20", help="see main.py", **text)
    parser.add_argument("--student", default="resnet8", help="see main.py", **text)
    parser.add_argument("--teacher_path", type=Path, metavar="FILE", help="see main.py")
    parser.add_argument("--budget_seconds", type=number(float, 1), default=60, metavar="S", help="of each run")
    parser.add_argument("--budget_teacher_passes", type=number(float, 1), metavar="N", help="of each run, instead")
    parser.add_argument("--flags", default="", metavar="'FLAGS'", help="of main.py, for every run; a row's own win")
    add_flags(parser, at_once=1)
    parser.add_argument("--name", default="methods", help="part of every run folder's name, and of table and plot")
    return parser.parse_args(argv)


def report(groups: Groups, failed: dict[Cell, str], args: Namespace) -> None:
    """Prints the table; writes it, as Markdown and CSV, and the plot under the run root."""
    budget = f"{args.budget_teacher_passes or args.budget_seconds:,.10g}"
    budget += " teacher passes" if args.budget_teacher_passes else " s"
    rows = table(groups)
    notes = [f"- {label}, seed {seed}: failed: {said}" for (label, seed), said in failed.items()]
    title = f"**{args.teacher} > {args.student} on {args.dataset}, {budget} a run; mean ± sample std over seeds**"
    text = "\n".join([title, "", markdown(rows), "", *sources(groups), *notes])
    print(text)
    base = args.run_root / args.name
    base.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{base}.md").write_text(text + "\n", encoding="utf-8")
    numbers(groups).to_csv(f"{base}.csv", index=False)
    if any(groups.values()):
        draw_costs({label: groups[label] for label in rows.method if groups[label]}, Path(f"{base}.png"))
        print(f"table, numbers and plot: {base}.md, .csv, .png")


def numbers(groups: Groups) -> pd.DataFrame:
    """A row a finished run, what NUMBERS names as it is."""
    rows = []
    for label, runs in groups.items():
        for run in runs:
            spent = run.summary["seconds_total"] + run.summary.get("seconds_planning", 0)
            summary = run.summary | {"budget_spent": spent}
            row = {"method": label, "seed": run.config["seed"]}
            rows.append(row | {name: summary.get(name) for name, _, _ in NUMBERS.values()})
    return pd.DataFrame(rows, columns=["method", "seed", *(name for name, _, _ in NUMBERS.values())])


def table(groups: Groups) -> pd.DataFrame:
    """A row a method, the best last accuracy first."""
    frame = numbers(groups)
    order = frame.groupby("method").accuracy_last.mean().reindex(list(groups)).sort_values(ascending=False)
    rows = []
    for label in order.index:
        cell = frame[frame.method == label]
        row = {"method": label, "n": len(cell)}
        row |= {header: mean_and_std(cell[name] / unit, n) for header, (name, unit, n) in NUMBERS.items()}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_program(main)
