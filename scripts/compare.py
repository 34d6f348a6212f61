"""Runs side by side: a table, and a picture of accuracy and generator loss over rounds with synthetic samples.

python scripts/compare.py run/anew-digits-resnet20-resnet8 run/reuse_common-... --picture run/compare.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.arguments import Parser
from datafree.entry import run_program

from datafree.reporting.plots import draw_comparison
from datafree.reporting.run_reader import FinishedRun, read_run

TARGET = 95.0


def main(argv: list[str]) -> None:
    parser = Parser(prog="compare.py", description="Compare finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw them, as a PNG")
    args = parser.parse_args(argv)
    runs = [read_run(path) for path in args.runs]
    print(table(runs))
    if args.picture:
        draw_comparison(runs, args.picture)
        print(f"\npicture: {args.picture}")


def table(runs: list[FinishedRun]) -> str:
    """Markdown, a row a run; a run that is not complete says so."""
    lines = [
        f"| task | mode | teacher % | student last % | best % | rounds to {TARGET:g} % | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        pair = f"{run.config['teacher']} -> {run.config['student']}"
        if not run.complete:
            lines.append(f"| {pair} | {run.config['mode']} | incomplete: {run.path} | | | | |")
            continue
        summary = run.summary
        accuracies = [summary["accuracy_teacher"], summary["accuracy_last"], summary["accuracy_best"]]
        shown = " | ".join("-" if value is None else f"{value:.2f}" for value in accuracies)
        rounds = run.rounds_to(TARGET) or "not reached"
        lines.append(f"| {pair} | {run.config['mode']} | {shown} | {rounds} | {summary['seconds_total']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
