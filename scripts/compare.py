"""Runs side by side: a table, and a picture of accuracy and loss over epochs with synthetic samples.

python scripts/compare.py run/anew-digits-resnet20-resnet8 run/reuse_common-... --picture run/compare.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.reporting.plots import draw_comparison
from datafree.reporting.run_reader import FinishedRun, mean_and_std, read_run
from datafree.reporting.tables import markdown
from datafree.runs.folder import slug

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
    rows, several = [], len({run.config["dataset"] for run in runs}) > 1
    for run in runs:
        row = {"data set": slug(run.config["dataset"])} if several else {}
        row |= {"task": run.pair.replace(">", "->"), "method": run.method}
        given = len(row)
        summary = run.summary if run.complete else {}
        for header, key in {"teacher %": "teacher", "student last %": "last", "best %": "best"}.items():
            row[header] = mean_and_std([summary.get(f"accuracy_{key}")])
        row[f"epochs to {TARGET:g} %"] = run.epochs_to(TARGET) or "not reached"
        row["seconds"] = mean_and_std([summary.get("seconds_total")], 0)
        if not run.complete:
            row |= dict.fromkeys(list(row)[given:], "") | {"teacher %": f"incomplete: {run.path}"}
        rows.append(row)
    return markdown(pd.DataFrame(rows))


if __name__ == "__main__":
    run_program(main)
