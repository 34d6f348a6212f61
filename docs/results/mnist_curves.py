"""Draws assets/mnist_curves.png from mnist_curves.csv: python docs/results/mnist_curves.py, from the root."""

import sys
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
from matplotlib import pyplot as plt

from datafree.reporting.plots import STYLES, label_axes, save

SHOWN = {"scratch": 12, "kd": 12, "dafl": 200, "dfad": 40, "noise": None}  # epochs of the whole schedule


def main() -> None:
    rows = pd.read_csv(Path(__file__).with_suffix(".csv"))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, epochs), (colour, style) in zip(SHOWN.items(), cycle(STYLES), strict=False):
        values = rows[rows["run"] == name].pivot_table(index="epoch", columns="seed", values="accuracy")
        last = values.index.max()
        share = f", {last} of {epochs} epochs" if epochs and last < epochs else ""
        label = f"{name} (n = {values.shape[1]}{share})"
        axes.plot(values.mean(axis=1), color=colour, linestyle=style, label=label)
        axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    axes.axhline(98.95, color="0.5", linewidth=0.8, label="teacher")
    axes.set_ylim(40, 100)
    label_axes(axes, "student's accuracy (%), mean and range")
    axes.legend(loc="lower right", fontsize=9)
    save(figure, Path("assets/mnist_curves.png"))


if __name__ == "__main__":
    main()
