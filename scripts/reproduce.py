"""Every cell of the paper's figure: five pairs on CIFAR-10 and CIFAR-100, anew and reusing, without and with the hard
loss, over seeds; ends in the table, with what was published beside it. Not run by us on CIFAR yet.

    python scripts/reproduce.py --dry_run
    python scripts/reproduce.py --datasets cifar10 --pairs "vgg11>resnet18" --seeds 0
    python scripts/reproduce.py --executor slurm --slurm "partition=gpu gpus_per_node=1 time=24:00:00"

reuse_common takes what the anew run of --source, without hard loss, left on the same data set and seed; those runs are
part of the plan. Length and rates are main.py's defaults for CIFAR, the paper's. What is complete is kept, what was
begun goes on; one run a GPU at a time, or two arrays of Slurm: docs/cluster.md.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launching import Job, add_flags, folder_of, run_jobs, told

from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.models.generator_files import DECODER_FILE, GENERATOR_FILE
from datafree.reporting.results import collect
from datafree.reporting.run_reader import read_run
from datafree.reporting.tables import write_tables
from datafree.runs.stopping import Stopped
from registry import DATASETS, MODELS, teacher_file

Pair = tuple[str, str]
ENDINGS = {"markdown": "md", "latex": "tex", "csv": "csv"}
OF_THE_PLAN = {
    *("mode", "dataset", "teacher", "student", "hl", "seed"),
    *("device", "tag", "run_root", "resume", "overwrite"),
}
SOURCE = "resnet34>resnet18"
PAIRS = (SOURCE, "vgg11>resnet18", "wrn40_2>wrn16_1", "wrn40_2>wrn40_1", "wrn40_2>wrn16_2")


def main(argv: list[str]) -> None:
    args = arguments(argv)
    jobs = plan(args)
    missing = missing_teachers(args)
    if args.dry_run:
        print(*told(jobs, args), sep="\n")
        if missing:
            print(f"\nmissing teachers: {len(missing)}", *(": ".join(item) for item in missing.items()), sep="\n")
        return
    if missing:
        raise UserError(
            f"{len(missing)} teachers are missing: {', '.join(missing)}",
            f"train them ({'; '.join(missing.values())}), or name fewer --datasets or --pairs",
        )
    done: list[Job] = []

    def finished(job: Job) -> None:
        done.append(job)
        print(f"done ({len(done)} of {len(jobs)}): {job.folder}", flush=True)

    try:
        failed = run_jobs(jobs, args, finished, keep_going=True)
    except Stopped:
        print("\nstopped; finished so far:", flush=True)
        report(jobs, args)
        raise
    report(jobs, args)
    if failed:
        print(*(f"failed: {name}: {said}" for name, said in failed.items()), sep="\n")
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed", "mend it and call this again; it goes on from here"
        )


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="reproduce.py", description="Run every cell of the paper's figure; end in its table.")
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "cifar100"], metavar="NAME", help="of registry.py")
    quoted = "TEACHER>STUDENT, in quotation marks, or TEACHER:STUDENT"
    parser.add_argument("--pairs", nargs="+", type=pair, default=list(map(pair, PAIRS)), metavar="PAIR", help=quoted)
    parser.add_argument("--source", type=pair, default=pair(SOURCE), metavar="PAIR", help="whose generator is reused")
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda[:i]|...", help="auto: every GPU that is there"
    )
    add_flags(parser)
    parser.add_argument("--name", default="reproduce", help="part of every folder's name, and of the tables'")
    parser.add_argument(
        "--flags", default="", metavar="'FLAGS'", help="of main.py, for every run: --flags='--download'"
    )
    args = parser.parse_args(argv)
    for name in ("datasets", "pairs", "seeds"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    for name in args.datasets:
        _ = DATASETS[name]
    words = {word.split("=")[0].replace("-", "_").lstrip("_") for word in shlex.split(args.flags)}
    taken = sorted(words.intersection(OF_THE_PLAN))
    if taken:
        raise UserError(f"--flags sets {', '.join(taken)}, which the plan sets", "see reproduce.py --help")
    return args


def pair(text: str) -> Pair:
    """A checker for argparse: two models of the registry."""
    parts = re.split("[>:]", text)
    unknown = [name for name in parts if name not in MODELS]
    if len(parts) != 2 or unknown:
        what = f"no model {unknown[0]!r}" if unknown else "not two models"
        raise argparse.ArgumentTypeError(f"{text!r}: {what}; give TEACHER>STUDENT")
    return parts[0], parts[1]


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run, by data set and seed; first of each the one whose generator the others reuse."""
    jobs = []
    for dataset in args.datasets:
        for seed in args.seeds:
            source = job(args, dataset, args.source, seed, "anew", hl=False)
            group = [
                job(args, dataset, each, seed, mode, hl, source if mode != "anew" else None)
                for each in args.pairs
                for mode in ("anew", "reuse_common")
                for hl in (False, True)
            ]
            jobs += [source, *(each for each in group if each != source)]
    return jobs


def job(
    args: argparse.Namespace, dataset: str, pair: Pair, seed: int, mode: str, hl: bool, source: Job | None = None
) -> Job:
    """One run; ``source`` is what it reuses. Its name is that of its folder."""
    teacher, student = pair
    flags = ["--mode", mode, "--dataset", dataset, "--teacher", teacher, "--student", student, "--seed", str(seed)]
    flags += ["--hl"] * hl
    if source:
        flags += ["--reuse_generator_path", str(source.folder / GENERATOR_FILE)]
        flags += ["--reuse_decoder_path", str(source.folder / DECODER_FILE)]
    flags += ["--device", args.device, *shlex.split(args.flags)]
    flags += ["--tag", f"{args.name}-s{seed}", "--run_root", str(args.run_root)]
    folder = folder_of(flags)
    return Job(folder.name, flags, folder, source.name if source else None)


def missing_teachers(args: argparse.Namespace) -> dict[str, str]:
    """The absent checkpoints among those that the plan needs, each with the command that trains it."""
    teachers = dict.fromkeys(teacher for teacher, _ in (args.source, *args.pairs))
    needed = {teacher_file(dataset, teacher): (dataset, teacher) for dataset in args.datasets for teacher in teachers}
    return {
        str(path): f"python train_scratch.py --model {teacher} --dataset {dataset}"
        for path, (dataset, teacher) in needed.items()
        if not path.exists()
    }


def report(jobs: list[Job], args: argparse.Namespace) -> None:
    """Prints the tables of what is there of the plan, complete or begun, and writes them under the run root."""
    folders = [each.folder for each in jobs]
    cells, notes = collect(read_run(folder) for folder in folders if (folder / "config.json").exists())
    files = {form: args.run_root / f"{args.name}.{end}" for form, end in ENDINGS.items()}
    print(write_tables(cells, notes, files, published=True))
    print(f"\nruns planned: {len(jobs)}; tables: {', '.join(map(str, files.values()))}")


if __name__ == "__main__":
    run_program(main)
