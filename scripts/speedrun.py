"""Seconds until a student is good: from the process's start to the first evaluation at a mark that the next one keeps.

    python scripts/speedrun.py 95                                           digits, resnet20 > resnet8, anew, 3 seeds
    python scripts/speedrun.py 95 --name reused --flags "--teacher wrn16_1 --mode reuse_common
        --reuse_generator_path run/FIRST/gan_reuse.pth --reuse_decoder_path run/FIRST/decoder.pth"

Everything counts: importing, building, looking at the teacher, evaluating, saving. A run is stopped where it has shown
what is asked; its schedule is that of its full length. The machine must have nothing else to do.
"""

import csv
import itertools
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd
from launching import folder_of

from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.reporting.run_reader import mean_and_std
from datafree.reporting.tables import markdown

POLL_SECONDS = 0.02


def main(argv: list[str]) -> None:
    parser = Parser(prog="speedrun.py", description="Seconds until a student first reaches a mark, and stays there.")
    parser.add_argument("mark", type=number(float, 0), metavar="PERCENT", help="accuracy on held-out images")
    parser.add_argument("--flags", default="", metavar="'FLAGS'", help="of main.py")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], metavar="N", help="one run each")
    parser.add_argument("--run_root", type=Path, default=Path("run"), metavar="DIR", help="where run folders are made")
    parser.add_argument("--name", default="speedrun", help="part of every run folder's name, and of the CSV's")
    args = parser.parse_args(argv)
    rows = []
    for seed in args.seeds:
        tag = f"{args.name}-s{seed}"
        line = [*shlex.split(args.flags), "--seed", str(seed), "--tag", tag, "--run_root", str(args.run_root)]
        rows.append({"seed": seed} | timed(line, args.mark))
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(args.run_root / f"{args.name}.csv", index=False)
    columns = {"seconds": 1, "epoch": 1, "start": 1}
    means = {name: mean_and_std(frame[name], decimals) for name, decimals in columns.items()}
    print(markdown(pd.DataFrame([{"mark %": args.mark, "n": len(rows)} | means])))


def timed(line: Sequence[str], mark: float, whole: bool = False) -> dict[str, float | None]:
    """One run of main.py, begun anew, stopped where it has shown the mark unless it is wanted ``whole``.

    Returns:
        seconds and epoch of the mark, None where it is not reached; and the seconds until the first epoch had ended.

    Raises:
        UserError: where the run fails.
    """
    file, began, seen = folder_of(line) / "metrics.csv", time.perf_counter(), []
    file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), *line, "--overwrite"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            ended = process.poll() is not None
            now = time.perf_counter() - began
            seen += [(now, row) for row in rows_of(file)[len(seen) :]]
            at = reached([row.get("accuracy") or "" for _, row in seen], mark, ended)
            if ended or (at is not None and not whole):
                break
            time.sleep(POLL_SECONDS)
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1].strip()
    if ended and process.returncode:
        raise UserError(said.splitlines()[-1] if said else "the run failed", f"see {file.parent / 'log.txt'}")
    found = (None, None) if at is None else (round(seen[at][0], 2), int(seen[at][1]["epoch"]))
    return {"seconds": found[0], "epoch": found[1], "start": round(seen[0][0], 2)}


def rows_of(file: Path) -> list[dict[str, str]]:
    """Of a CSV that another process is writing: those that are whole."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def reached(accuracies: Sequence[str], mark: float, ended: bool) -> int | None:
    """Where an evaluation first has the mark and the next one, if the run is not at its end, has it, too.

    Args:
        accuracies: of the epochs, % or "" where nothing was evaluated.
        mark: %.
        ended: whether no more will come.
    """
    scores = [(at, float(value)) for at, value in enumerate(accuracies) if value]
    for (at, score), (_, following) in itertools.pairwise(scores):
        if score >= mark and following >= mark:
            return at
    return scores[-1][0] if ended and scores and scores[-1][1] >= mark else None


if __name__ == "__main__":
    run_program(main)
