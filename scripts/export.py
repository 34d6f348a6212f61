"""A run's student as a folder that somebody else can use: weights, input format, origin, model card.

    python scripts/export.py run/anew-digits-resnet20-resnet8                     safetensors, into RUN/export
    python scripts/export.py run/anew-... --format safetensors onnx torch_export --out resnet8

Each format is read back by what reads it elsewhere and compared with the student; where the answers differ by more than
--tolerance, nothing is left. See docs/export.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import registry
from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.export.exporting import TOLERANCE, check_place, export
from datafree.export.formats import FORMATS
from datafree.export.origin import WEIGHTS, student_of


def main(argv: list[str]) -> None:
    parser = Parser(prog="export.py", description="Export a run's student, or the model of a run of train_scratch.py.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder, complete or not")
    formats = "one or more (default: safetensors)"
    parser.add_argument("--format", nargs="+", choices=FORMATS, help=formats)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: RUN/export)")
    parser.add_argument("--which", choices=WEIGHTS, help="weights (default: the best, where the run keeps them)")
    inside = "whether onnx and torch_export take pixels in [0, 1] and normalise inside, or take normalised images"
    parser.add_argument("--normalisation", choices=("inside", "outside"), default="inside", help=inside)
    borne = "largest difference from the student's logits, in units of the largest; raise it to accept more"
    parser.add_argument("--tolerance", type=number(float, 0), default=TOLERANCE, metavar="R", help=borne)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    args = parser.parse_args(argv)
    if args.run.is_file():
        raise UserError(f"{args.run} is a file", f"name the run folder, {args.run.parent}, and --which best or last")
    out = args.out or args.run / "export"
    check_place(out, args.overwrite)
    student, origin = student_of(args.run, registry, args.which)
    inside = args.normalisation == "inside"
    how = {"inside": inside, "tolerance": args.tolerance, "overwrite": args.overwrite}
    formats = list(dict.fromkeys(args.format or ["safetensors"]))
    for name, difference in export(student, origin, formats, out, **how).items():
        print(f"{name}: {difference}")
    print(f"exported: {out}")


if __name__ == "__main__":
    run_program(main)
