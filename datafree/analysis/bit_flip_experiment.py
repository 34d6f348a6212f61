"""How hard bit flips hit a run's 8-bit teacher, by what images the attacker has: table rows, table and plot.

for every attacker (seed)
    its real images are split off the test set; accuracy is measured on all the others
    for every source of images (attacker_data.py): label them, search and flip bits, measure after every flip
        labels: the true ones of real images, else what the 8-bit teacher says before the first flip
    and as many random flips, for which no image is needed
"""

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ..data.datasets import TensorImages
from ..evaluation import percentage_equal, predict
from ..randomness import Streams
from ..reporting.plots import STYLES, label_axes, plt
from ..reporting.run_networks import RunNetworks
from .attacker_data import attacker_images, split_off
from .bit_flip import Flip, bit_flip_attack, random_flips
from .quantisation import QuantisedModel

RANDOM = "random flips"
MARKERS = "osv^Dx"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Row:
    """The teacher after so many flips of one attacker. Where there was none yet, nothing is said of the last one."""

    source: str
    seed: int
    flips: int
    accuracy: float
    loss: float | None = None
    layer: str | None = None
    index: int | None = None
    bit: int | None = None


def accuracies(run: RunNetworks, quantised: QuantisedModel) -> tuple[float, float]:
    """The teacher's accuracy (%) on the whole test set before and after quantisation."""
    images = run.real_images()
    return _accuracy_on(run, images, run.teacher), _accuracy_on(run, images, quantised.model)


def bit_flip_experiment(
    run: RunNetworks, quantised: QuantisedModel, seeds: Sequence[int], flips: int, attacker_batch: int, k_top: int
) -> Iterator[list[Row]]:
    """For every seed and source, the rows of one attack, 0 flips first. The quantised model is left as it is.

    Args:
        run: whose teacher, generator and test set are used.
        quantised: its teacher with 8-bit weights.
        seeds: an attacker each.
        flips: at most so many.
        attacker_batch: images that an attacker has.
        k_top: see :func:`bit_flip_attack`.

    Raises:
        UserError: where there is no test set, or one of no more than ``attacker_batch`` images.
    """
    for seed in seeds:
        real, others = split_off(run.real_images(), attacker_batch, seed)

        def evaluate(model: QuantisedModel, others: TensorImages = others) -> float:
            return _accuracy_on(run, others, model.model)

        whole = evaluate(quantised)
        for source, images in attacker_images(run, attacker_batch, seed, real):
            x, attacked = run.augmentation.normalise(images.x), quantised.copy()
            labels = _answers(quantised, x) if images.labels is None else images.labels
            history = bit_flip_attack(attacked, x, labels, evaluate, flips, k_top)
            yield _rows(source, seed, whole, history)
        history = random_flips(quantised.copy(), Streams(seed)[RANDOM], evaluate, flips)
        yield _rows(RANDOM, seed, whole, history)


def _rows(source: str, seed: int, accuracy: float, history: list[Flip]) -> list[Row]:
    first = Row(source, seed, 0, accuracy, history[0].loss_before if history else None)
    later = [
        Row(source, seed, number, flip.accuracy, flip.loss_after, flip.layer, flip.index, flip.bit)
        for number, flip in enumerate(history, 1)
    ]
    return [first, *later]


@torch.no_grad()
def _answers(model: QuantisedModel, x: torch.Tensor) -> torch.Tensor:
    return model(x).argmax(1)


def _accuracy_on(run: RunNetworks, images: TensorImages, model: torch.nn.Module) -> float:
    return percentage_equal(*predict(model, images, run.augmentation, run.compute, EVALUATION_BATCH))


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """A CSV with a line a row; an empty cell is a None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def by_source(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """Accuracies after 0, 1, 2, ... flips: a list of seeds for each number of flips, for each source.

    An attack that ended early keeps its last accuracy, as nothing more is flipped.
    """
    curves: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        curves.setdefault(row.source, {}).setdefault(row.seed, []).append(row.accuracy)
    longest = max(len(curve) for seeds in curves.values() for curve in seeds.values())
    filled = {
        source: [curve + curve[-1:] * (longest - len(curve)) for curve in seeds.values()]
        for source, seeds in curves.items()
    }
    return {source: [list(values) for values in zip(*seeds, strict=True)] for source, seeds in filled.items()}


def table(rows: Sequence[Row], every: int = 5) -> str:
    """Markdown: accuracy after every so many flips, mean ± sample standard deviation over seeds, worst hit first."""
    sources = by_source(rows)
    last = len(next(iter(sources.values()))) - 1
    shown = sorted({*range(0, last + 1, every), last})
    lines = ["| attacker's images | n | " + " | ".join(f"{number} flips" for number in shown) + " |"]
    lines.append("|" + "---|" * (len(shown) + 2))
    for source, curve in sorted(sources.items(), key=lambda item: statistics.mean(item[1][-1])):
        cells = " | ".join(_mean_and_spread(curve[number]) for number in shown)
        lines.append(f"| {source} | {len(curve[0])} | {cells} |")
    return "\n".join(lines)


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def draw_bit_flips(rows: Sequence[Row], chance: float, path: Path) -> None:
    """Accuracy over flips: a line a source, the mean over seeds, with their standard deviation behind it.

    Args:
        rows: of all sources and seeds.
        chance: accuracy of guessing (%), drawn as a line.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    styles = (*STYLES, ("#999999", "-"))
    for (source, curve), (colour, style), marker in zip(by_source(rows).items(), styles, MARKERS, strict=False):
        mean = [statistics.mean(values) for values in curve]
        spread = [statistics.stdev(values) if len(values) > 1 else 0 for values in curve]
        flips = range(len(curve))
        axes.plot(flips, mean, color=colour, linestyle=style, marker=marker, markersize=5, label=source)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(flips, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(chance, color="black", linewidth=0.8)
    axes.annotate(" guessing", (0, chance), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=8)
    axes.set_ylim(0, 102)
    axes.xaxis.get_major_locator().set_params(integer=True)
    label_axes(axes, "8-bit teacher's accuracy (%), mean and std", over="flipped bits")
    axes.legend(title="attacker's images", fontsize=8, title_fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
