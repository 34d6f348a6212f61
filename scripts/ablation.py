"""Runs main.py for several settings and seeds, and ends in a table (mean ± std, n) and a plot.

    python scripts/ablation.py "anew: --mode anew" "fixed: --mode reuse_fix ..." --name modes --seeds 0 1 2

A setting is ``label: flags``; ``{seed}`` in the flags becomes the seed. Runs that are complete are kept, others go on
where they stopped. Interrupted, it prints what has finished. Every run's folder is named beside the table.
"""

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from datafree.arguments import Parser, number
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.plots import draw_spread
from datafree.run_reader import FinishedRun, mean_and_std, read_run

Groups = dict[str, list[FinishedRun]]


def main(argv: list[str]) -> None:
    parser = Parser(prog="ablation.py", description="Run settings over seeds; end in a table and a plot.")
    parser.add_argument("settings", nargs="+", metavar="'LABEL: FLAGS'", help="flags of main.py; {seed} is filled in")
    parser.add_argument("--name", required=True, help="part of every run folder's name, and of table and plot")
    parser.add_argument("--title", default="", help="what this reproduces; printed above the table")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], metavar="N", help="one run each")
    parser.add_argument("--jobs", type=number(int, 1), default=1, metavar="N", help="runs at a time")
    parser.add_argument("--run_root", type=Path, default=Path("run"), metavar="DIR", help="where run folders are made")
    args = parser.parse_args(argv)
    planned = {
        (label, seed): flags.replace("{seed}", str(seed))
        for label, flags in split(args.settings)
        for seed in args.seeds
    }
    groups: Groups = {label: [] for label, _ in split(args.settings)}
    try:
        run_all(planned, args, lambda label, run: groups[label].append(run))
    except KeyboardInterrupt:
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


def run_all(planned: dict[tuple[str, int], str], args: object, finished: Callable[[str, FinishedRun], None]) -> None:
    """Runs what is planned, ``args.jobs`` at a time, in order; reports each run as it ends."""
    stop = threading.Event()

    def one(task: tuple[tuple[str, int], str]) -> None:
        (label, seed), flags = task
        if not stop.is_set():
            folder = run_one(f"{args.name}-{slug(label)}-s{seed}", [*shlex.split(flags), "--seed", str(seed)], args)
            finished(label, read_run(folder))

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            list(pool.map(one, planned.items()))
        except BaseException:
            stop.set()
            raise


def run_one(tag: str, flags: list[str], args: object) -> Path:
    """One run of main.py, resumed where it was begun; a complete one is kept if it had these flags.

    Its output is in <folder>/log.txt. Returns its folder.
    """
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        *flags,
        "--tag",
        tag,
        "--run_root",
        str(args.run_root),
        "--resume",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise UserError(
            f"{shlex.join(command[1:])}: {last}", "mend it and call this script again; it goes on from here"
        )
    folder = folder_named_in(ended.stdout)
    print(f"done: {folder}", flush=True)
    return folder


def folder_named_in(output: str) -> Path:
    """The run folder in main.py's last line: ``finished: ...; FOLDER`` or ``FOLDER is complete: ...``."""
    line = output.strip().splitlines()[-1]
    return Path(line.split("; ", 1)[1] if line.startswith("finished: ") else line.rsplit(" is complete: ", 1)[0])


def slug(label: str) -> str:
    """The label as it may stand in a folder's name."""
    return "".join(letter if letter.isalnum() or letter in ".=" else "_" for letter in label)


def report(groups: Groups, args: object) -> None:
    """Prints the table and where its numbers come from; writes both and the plot under the run root."""
    text = "\n".join([f"**{args.title or args.name}**", "", table(groups), "", *sources(groups)])
    print(text)
    (args.run_root / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")
    if any(groups.values()):
        draw_spread(groups, args.run_root / f"{args.name}.png")
        print(f"table and plot: {args.run_root / args.name}.md, .png")


def table(groups: Groups) -> str:
    """Markdown: a row a setting; mean ± sample standard deviation over its n finished runs."""
    lines = [
        "| setting | n | last % | best % | agreement % | rounds to 90 % | to 95 % | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in groups.items():
        columns = [[run.summary[key] for run in runs] for key in ("accuracy_last", "accuracy_best", "agreement")]
        columns += [[run.rounds_to(accuracy) for run in runs] for accuracy in (90, 95)]
        columns += [[run.summary["seconds_total"] for run in runs]]
        lines.append(f"| {label} | {len(runs)} | " + " | ".join(map(mean_and_std, columns)) + " |")
    return "\n".join(lines)


def sources(groups: Groups) -> list[str]:
    """Where each row comes from."""
    return [f"- {label}: {', '.join(str(run.path) for run in runs) or 'not run'}" for label, runs in groups.items()]


if __name__ == "__main__":
    run_program(main)
