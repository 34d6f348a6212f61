"""The paper's table from run folders: methods by tasks, mean ± std over seeds, with time, memory and images.

    python scripts/table.py run/*                                    Markdown, to the terminal
    python scripts/table.py run/*-seed[012] --latex table.tex --csv table.csv

Runs that are not complete, seeds that come twice and settings that differ within a cell are named below the tables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.arguments import Parser
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.results import collect
from datafree.run_reader import FinishedRun, read_run
from datafree.tables import write_tables

FORMS = ("markdown", "latex", "csv")


def main(argv: list[str]) -> None:
    parser = Parser(prog="table.py", description="Tables of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, of main.py or train_scratch.py")
    for form in FORMS:
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"also write it as {form} to this file")
    parser.add_argument("--published", action="store_true", help="published CIFAR accuracies beside ours")
    args = parser.parse_args(argv)
    cells, notes = collect(read_all(args.runs))
    print(write_tables(cells, notes, {form: getattr(args, form) for form in FORMS}, args.published))


def read_all(paths: list[Path]) -> list[FinishedRun]:
    """The run folders among the paths; files, as ``run/*`` may name, are passed over.

    Raises:
        UserError: for a folder that is no run's, or where there is no folder.
    """
    folders = [path for path in paths if not path.is_file()]
    if not folders:
        raise UserError("no run folder among the paths", "name folders under run/")
    return [read_run(path) for path in folders]


if __name__ == "__main__":
    run_program(main)
