"""The paper's table from run folders: methods by tasks, mean ± std over seeds, with time, memory and images.

    python scripts/table.py run/*                                    Markdown, to the terminal
    python scripts/table.py run/*-seed[012] --latex table.tex --csv table.csv

Column "scratch" is the student trained on real data, by train_scratch.py. Runs that are not complete, seeds that come
twice and settings that differ within a cell are named below the tables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.reporting.results import collect
from datafree.reporting.run_reader import FinishedRun, read_run
from datafree.reporting.tables import write_tables

FORMS = ("markdown", "latex", "csv")


def main(argv: list[str]) -> None:
    parser = Parser(prog="table.py", description="Tables of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, of main.py or train_scratch.py")
    for form in FORMS:
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"also write it as {form} to this file")
    parser.add_argument("--published", action="store_true", help="published CIFAR accuracies beside ours")
    args = parser.parse_args(argv)
    runs, others = read_all(args.runs)
    cells, notes = collect(runs)
    print(write_tables(cells, notes + others, {form: getattr(args, form) for form in FORMS}, args.published))


def read_all(paths: list[Path]) -> tuple[list[FinishedRun], list[str]]:
    """The run folders among the paths, and a note on each other folder; files, as in ``run/*``, are passed over.

    Raises:
        UserError: where there is no run folder, or one is damaged.
    """
    folders = [path for path in paths if not path.is_file()]
    runs = [path for path in folders if (path / "config.json").exists()]
    if not runs:
        raise UserError("no run folder among the paths", "name folders under run/, as in run/*")
    notes = [f"no run folder, passed over: {path}" for path in folders if path not in runs]
    return [read_run(path) for path in runs], notes


if __name__ == "__main__":
    run_program(main)
