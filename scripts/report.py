"""What a run left, as one web page that needs nothing else: report.html in the run folder.

    python scripts/report.py run/anew-digits-resnet20-resnet8
    python scripts/report.py run/anew-... run/reuse_common-... --output both.html

The confusion matrix, accuracy by class and samples over epochs also go to the run's TensorBoard, beside its scalars.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import registry
from datafree import files
from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.reporting.report import examine, page, write_board

REPORT_FILE = "report.html"


def main(argv: list[str]) -> None:
    parser = Parser(prog="report.py", description="Report on runs, complete or not, as a web page.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    where = f"one page for all of them (default: {REPORT_FILE} in each folder)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=where)
    parser.add_argument("--no_tensorboard", action="store_true", help="add nothing to the runs' TensorBoard")
    args = parser.parse_args(argv)
    reports = [examine(path, registry) for path in args.runs]
    for report in [] if args.no_tensorboard else reports:
        state = "" if report.run.complete else " (the run is not complete)"
        print(f"TensorBoard: {write_board(report)} figures added to {report.run.path / 'tensorboard'}{state}")
    pages = {args.output: reports} if args.output else {report.run.path / REPORT_FILE: [report] for report in reports}
    for file, content in pages.items():
        text = page(content).encode(errors="xmlcharrefreplace")
        files.write_whole(file, lambda opened, text=text: opened.write(text))
        print(f"report: {file}")


if __name__ == "__main__":
    run_program(main)
