"""How alike the images are that runs have made: of a round, of different rounds, and how fine their detail is.

    python scripts/pool_diversity.py run/*                    Markdown, to the terminal
    python scripts/pool_diversity.py run/* --csv FILE         also as CSV

within a round    standard deviation of a pixel over the images of a round, mean over pixels and rounds
between rounds    the same of the rounds' mean images, over rounds
fine detail, %    of images made grey: power at more than a quarter of a cycle a pixel, of all but the mean's

Pixels are in [0, 1]. A round is what came into the pool at once; of several processes it is the first one's share.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from table import read_all

from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.errors import UserError
from datafree.reporting.run_reader import FinishedRun
from datafree.reporting.tables import markdown
from datafree.runs.snapshot import STATE_FILE, pool_file

FINE = 0.25  # cycles a pixel; chosen by us


def main(argv: list[str]) -> None:
    parser = Parser(prog="pool_diversity.py", description="How alike the images in the pools of runs are.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of methods with a pool")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write it to this file")
    args = parser.parse_args(argv)
    runs, notes = read_all(args.runs)
    table = pd.DataFrame([row(run) for run in runs])
    print(markdown(table.round(4)), *notes, sep="\n")
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.5g")


def row(run: FinishedRun) -> dict[str, object]:
    """Of one run."""
    rounds = rounds_of(run)
    means = np.stack([images.mean(0) for images in rounds])
    return {
        "run": run.path.name,
        "rounds": len(rounds),
        "within a round": np.mean([images.std(0).mean() for images in rounds]),
        "between rounds": means.std(0).mean(),
        "fine detail, %": 100 * fine_share(np.concatenate(rounds)),
        "last %": run.summary.get("accuracy_last"),
    }


def rounds_of(run: FinishedRun) -> list[np.ndarray]:
    """The images (N, C, H, W) in [0, 1] of each round.

    Raises UserError where the run has left none, or is not finished: its file may then hold more than is known of.
    """
    state = run.path / STATE_FILE
    saved = torch.load(state, map_location="cpu", weights_only=True) if run.complete and state.exists() else {}
    chunks, size = saved.get("pool_chunks"), saved.get("processes", 1)
    if not chunks:
        raise UserError(f"{run.path} has no pool of a finished run", "name a finished run of a method with a pool")
    raw = np.fromfile(pool_file(run.path, 0, size), dtype=np.uint8)
    shape = torch.load(run.path / "synthetic.pth", map_location="cpu", weights_only=True).shape[1:]
    pixels, bytes_per_image, rounds, at = int(np.prod(shape)), len(raw) // sum(chunks), [], 0
    for count in chunks:  # images first, then whatever else the pool keeps of them
        rounds.append(raw[at : at + count * pixels].reshape(count, *shape) / np.float32(255))
        at += count * bytes_per_image
    return rounds


def fine_share(images: np.ndarray) -> float:
    """Of images (N, C, H, W): the share of power above FINE, zero frequency apart."""
    grey = images.mean(1)
    power = (np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2).mean(0)
    height, width = grey.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return float(power[frequency > FINE].sum() / power.sum())


if __name__ == "__main__":
    run_program(main)
