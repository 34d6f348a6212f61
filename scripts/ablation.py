"""Runs main.py for several settings and seeds; ends in tables (mean ± std, n; differences by seed) and a plot.

    python scripts/ablation.py "anew: --mode anew" "fixed: --mode reuse_fix ..." --name modes --seeds 0 1 2

A setting is ``label: flags``. In the flags ``{seed}`` becomes the seed, and ``{LABEL}`` the folder of another setting's
run with that seed, which is made before. Runs that are complete are kept, others go on where they stopped. Interrupted,
it prints what has finished. Every run's folder is named beside the table. --dry_run prints the plan; --executor slurm
makes it an array of Slurm.
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd
from launching import Job, add_flags, folder_of, run_jobs, told
from scipy import stats

from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.reporting.plots import draw_groups
from datafree.reporting.run_reader import FinishedRun, mean_and_std, read_run
from datafree.reporting.tables import markdown
from datafree.runs.stopping import Stopped

Groups = dict[str, list[FinishedRun]]
Cell = tuple[str, int]  # label, seed


def main(argv: list[str]) -> None:
    parser = Parser(prog="ablation.py", description="Run settings over seeds; end in a table and a plot.")
    parser.add_argument("settings", nargs="+", metavar="'LABEL: FLAGS'", help="flags of main.py; {seed} is filled in")
    parser.add_argument("--name", required=True, help="part of every run folder's name, and of table and plot")
    parser.add_argument("--title", default="", help="what this reproduces; printed above the table")
    parser.add_argument(
        "--marks",
        type=number(float, 0),
        nargs="+",
        default=[90, 95],
        metavar="%",
        help="epochs to these are in the table",
    )
    add_flags(parser, at_once=1)
    args = parser.parse_args(argv)
    planned = {
        (label, seed): flags.replace("{seed}", str(seed))
        for label, flags in split(args.settings)
        for seed in args.seeds
    }
    jobs = plan(planned, args)
    if args.dry_run:
        print(*told(list(jobs), args), sep="\n")
        return
    groups: Groups = {label: [] for label, _ in split(args.settings)}
    try:
        run_all(jobs, args, groups)
    except Stopped:
        print("\ninterrupted; finished so far:", flush=True)
        report(groups, args)
        raise
    report(groups, args)


def split(settings: Iterable[str]) -> list[tuple[str, str]]:
    """``label: flags`` -> (label, flags). Raises UserError where there is no colon or a label comes twice."""
    pairs = [tuple(part.strip() for part in setting.partition(":")[::2]) for setting in settings]
    labels = [label for label, _ in pairs]
    if not all(":" in setting for setting in settings) or len(set(labels)) < len(labels):
        raise UserError("a setting is 'label: flags', each label once", "see scripts/ablation_reuse_modes.sh")
    return pairs


def plan(planned: Mapping[Cell, str], args: Namespace) -> dict[Job, Cell]:
    """The runs, in order, and whose they are; in ``planned`` the flags of each label and seed.

    Raises:
        UserError: for flags that main.py refuses; where settings wait for each other.
    """
    jobs: dict[Cell, Job] = {}

    def job(cell: Cell, waiting: tuple[Cell, ...] = ()) -> Job:
        if cell not in jobs:
            (label, seed), flags, after = cell, planned[cell], None
            source = next((other for other in planned if other[1] == seed and f"{{{other[0]}}}" in flags), None)
            if source in (cell, *waiting):
                raise UserError(f"setting {label!r} waits for itself", "name the folder of another one")
            if source:
                before = job(source, (cell, *waiting))
                flags, after = flags.replace(f"{{{source[0]}}}", str(before.folder)), before.name
            tag = f"{args.name}-{slug(label)}-s{seed}"
            line = (*shlex.split(flags), "--seed", str(seed), "--tag", tag, "--run_root", str(args.run_root))
            jobs[cell] = Job(tag, line, folder_of(line), after)
        return jobs[cell]

    return {job(cell): cell for cell in planned}


def run_all(jobs: Mapping[Job, Cell], args: Namespace, groups: Groups, keep_going: bool = False) -> dict[Cell, str]:
    """Runs what is planned; each run is in ``groups`` as it ends.

    Returns:
        With ``keep_going`` what failed, and what it said.

    Raises:
        UserError: else for the first run that failed, once those under way have ended.
    """

    def finished(job: Job) -> None:
        print(f"done: {job.folder}", flush=True)
        groups[jobs[job][0]].append(read_run(job.folder))

    failed = run_jobs(list(jobs), args, finished, keep_going=keep_going)
    for failure in failed.values() if not keep_going else ():
        raise UserError(failure, "mend it and call this script again; it goes on from here")
    return {cell: failed[job.name] for job, cell in jobs.items() if job.name in failed}


def slug(label: str) -> str:
    """The label as it may stand in a folder's name."""
    return "".join(letter if letter.isalnum() or letter in ".=" else "_" for letter in label)


def report(groups: Groups, args: Namespace) -> None:
    """Prints the tables and where their numbers come from; writes both and the plot under the run root."""
    pairs, title = paired(groups), f"Last accuracy less that of {next(iter(groups))}, seed by seed"
    beside = [] if pairs.empty else ["", markdown(pairs, title)]
    text = "\n".join([f"**{args.title or args.name}**", "", table(groups, args.marks), *beside, "", *sources(groups)])
    print(text)
    (args.run_root / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")
    if any(groups.values()):
        draw_groups(groups, args.run_root / f"{args.name}.png")
        print(f"table and plot: {args.run_root / args.name}.md, .png")


def table(groups: Groups, marks: Iterable[float]) -> str:
    """Markdown: a row a setting; mean ± sample standard deviation over its n finished runs; epochs to ``marks`` (%)."""
    numbers = {"last %": "accuracy_last", "best %": "accuracy_best", "agreement %": "agreement"}
    rows = []
    for label, runs in groups.items():
        row = {"setting": label, "n": len(runs)}
        row |= {header: mean_and_std([run.summary[key] for run in runs]) for header, key in numbers.items()}
        row |= {f"epochs to {mark:g} %": mean_and_std([run.epochs_to(mark) for run in runs]) for mark in marks}
        rows.append(row | {"seconds": mean_and_std([run.summary["seconds_total"] for run in runs])})
    return markdown(pd.DataFrame(rows))


def paired(groups: Groups) -> pd.DataFrame:
    """A row a setting after the first: its last accuracies (%) less the first's, over the n > 1 seeds that have both.

    With the mean a 95 % confidence interval (Student's t); in ``above``, of how many pairs the difference is positive.
    """
    (_, first), *others = groups.items()
    before, rows = by_seed(first), []
    for label, runs in others:
        differences = (by_seed(runs) - before).dropna()
        if len(differences) > 1:
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            shown = {"difference": f"{differences.mean():+.2f}", "95 % interval": f"{low:+.2f} to {high:+.2f}"}
            above = f"{(differences > 0).sum()} of {len(differences)}"
            rows.append({"setting": label, "n": len(differences), **shown, "above": above})
    return pd.DataFrame(rows)


def by_seed(runs: Iterable[FinishedRun]) -> pd.Series:
    """Last accuracies (%)."""
    return pd.Series({run.config["seed"]: run.summary["accuracy_last"] for run in runs}, dtype=float)


def sources(groups: Groups) -> list[str]:
    """Where each row comes from."""
    return [f"- {label}: {', '.join(str(run.path) for run in runs) or 'not run'}" for label, runs in groups.items()]


if __name__ == "__main__":
    run_program(main)
