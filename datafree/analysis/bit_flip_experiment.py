"""How hard bit flips hit a run's 8-bit teacher, by what images the attacker has: rows, table and plot.

for every attacker (seed)
    its real images are split off the test set; accuracy is measured on all the others
    for every source of images: label them, search and flip bits, measure after every flip
        labels: the true ones of real images, else what the 8-bit teacher says before the first flip
    and as many random flips, for which no image is needed

The reused, or abandoned, network is met as the next task meets it: beside a fresh g1, in front of d. All generators run
on the statistics of their own batch, as in synthesis; a fresh g1 has no running ones.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..reporting.plots import MARKERS, STYLES, label_axes, plt, save
from ..reporting.run_networks import RunNetworks
from ..reporting.run_reader import mean_and_std
from ..reporting.tables import markdown
from .bit_flip import bit_flip_attack, random_flips
from .quantisation import QuantisedModel

REAL, RANDOM = "real samples", "random flips"


def split_off(run: RunNetworks, count: int, seed: int) -> tuple:
    """So many random test images for the attacker, and all others, to judge by. Raises UserError for too many."""
    images = run.real_images()
    if count >= len(images):
        raise UserError(f"{count} attacker images leave none of {len(images)} to judge by", "take fewer")
    order = torch.randperm(len(images), generator=run.stream(seed, "attacker", on_host=True)).to(images.labels.device)
    return tuple(type(images)(images.images[part], images.labels[part]) for part in (order[:count], order[count:]))


@torch.no_grad()
def attacker_images(run: RunNetworks, count: int, seed: int) -> dict[str, Tensor]:
    """By source, the pixels (count, C, H, W) of the attacker of that seed; one z for all generators."""
    device = run.compute.device
    z = torch.randn(count, run.nz, generator=run.stream(seed, "noise"), device=device)
    generators = run.generator_of_next_task(seed), run.generator_of_next_task(seed, abandoned=True), run.generator
    reused, abandoned, full = (copy.deepcopy(generator).train()(z) for generator in generators)
    return {
        REAL: split_off(run, count, seed)[0].images.float() / 255,
        "random noise": torch.rand(count, *run.spec.shape, generator=run.stream(seed, "pixels"), device=device),
        "reused network, fresh g1": reused,
        "abandoned network, fresh g1": abandoned,
        "full generator": full,
    }


def accuracy(run: RunNetworks, images, network: nn.Module | QuantisedModel) -> float:
    """Share of the images (%) whose class is predicted."""
    predicted, true = run.predict(getattr(network, "model", network), images, batch_size=64)
    return 100 * (predicted == true).double().mean().item()


def bit_flip_experiment(
    run: RunNetworks, quantised: QuantisedModel, seeds: Sequence[int], flips: int, attacker_batch: int, k_top: int
) -> pd.DataFrame:
    """For every seed and source, the rows of ``bit_flip_attack`` with ``attacker_batch`` images.

    ``quantised``, the run's teacher with 8-bit weights, is left as it is. Raises UserError without enough test images.
    """
    frames = {}
    for seed in seeds:
        real, others = split_off(run, attacker_batch, seed)
        evaluate = partial(accuracy, run, others)
        for source, x in attacker_images(run, attacker_batch, seed).items():
            with torch.no_grad():
                labels = real.labels if source == REAL else quantised(x).argmax(1)
            frames[source, seed] = bit_flip_attack(copy.deepcopy(quantised), x, labels, evaluate, flips, k_top)
        rng = run.stream(seed, RANDOM, on_host=True)
        frames[RANDOM, seed] = random_flips(copy.deepcopy(quantised), rng, evaluate, flips)
    return pd.concat(frames, names=["source", "seed"]).reset_index(["source", "seed"])


def by_source(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies, a row a source and seed, a column a number of flips; an attack that ended early keeps its last."""
    return rows.pivot(index=["source", "seed"], columns="flips", values="accuracy").ffill(axis=1)


def table(rows: pd.DataFrame, every: int = 5) -> str:
    """Markdown: accuracy after every so many flips, mean ± sample standard deviation over seeds, worst hit first."""
    curves = by_source(rows)
    shown = sorted({*curves.columns[::every], curves.columns[-1]})
    sources = curves[shown].groupby("source")
    order = sources.mean()[shown[-1]].sort_values(kind="stable").index
    cells = sources.agg(lambda values: mean_and_std(values, 1)).loc[order].rename(columns="{} flips".format)
    cells.insert(0, "n", sources.size())
    return markdown(cells.rename_axis("attacker's images").reset_index())


def draw_bit_flips(rows: pd.DataFrame, chance: float, path: Path) -> None:
    """Accuracy over flips, a line a source: mean over seeds, standard deviation behind it; guessing at ``chance`` %."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    curves = by_source(rows)
    styles = zip(rows.source.unique(), cycle([*STYLES, ("#999999", "-")]), cycle(MARKERS), strict=False)
    for source, (colour, style), marker in styles:
        mean, spread = curves.loc[source].mean(), curves.loc[source].std().fillna(0)
        axes.plot(mean, color=colour, linestyle=style, marker=marker, markersize=5, label=source)
        axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(chance, color="black", linewidth=0.8)
    axes.annotate(" guessing", (0, chance), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=8)
    axes.set_ylim(0, 102)
    axes.xaxis.get_major_locator().set_params(integer=True)
    label_axes(axes, "8-bit teacher's accuracy (%), mean and std", over="flipped bits")
    axes.legend(title="attacker's images", fontsize=8, title_fontsize=9)
    save(figure, path)
