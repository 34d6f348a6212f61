"""How sure a classifier is, how often it is right when it is, and how often it contradicts the hard label it is given.

confidence c = max softmax
ECE = sum_b n_b / N * |accuracy_b - confidence_b|           over bins of equal width (Guo et al., 2017)
disagreement = share of images whose hard label is not the predicted class
"""

from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from ..reporting.plots import MARKERS, STYLES, label_axes, plt, save
from ..reporting.tables import markdown

BINS = 15  # as in Guo et al.


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, labels: Tensor | None = None, batch_size: int = 64) -> pd.DataFrame:
    """A row each of pixels x (N, 3, H, W): hard label (the model's own without any), prediction, confidence, right."""
    logits = torch.cat([model(part).float() for part in x.split(batch_size)])
    confidence, predicted = logits.softmax(1).max(1)
    labels = predicted if labels is None else labels
    columns = {"label": labels, "predicted": predicted, "confidence": confidence, "right": labels == predicted}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def reliability(frame: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """Each bin (low, high] of confidence that holds any image: mean confidence, the share that is right, and n."""
    bin_of = pd.cut(frame.confidence, np.linspace(0, 1, bins + 1), include_lowest=True).rename("bin")
    groups = frame.astype({"confidence": float}).groupby(bin_of, observed=True)
    return groups.agg(confidence=("confidence", "mean"), accuracy=("right", "mean"), n=("right", "size"))


def expected_calibration_error(frame: pd.DataFrame, bins: int = BINS) -> float:
    """ECE in [0, 1], see the top of the file. 0 for no images."""
    filled = reliability(frame, bins)
    return float((filled.n * (filled.accuracy - filled.confidence).abs()).sum() / max(1, len(frame)))


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a rate in [0, 1]; (0, 1) for no images."""
    return tuple(binomtest(count, of).proportion_ci(0.95, "wilson")) if of else (0.0, 1.0)


def argument_for_the_hard_loss(real: pd.Series, clean: pd.Series, attacked: pd.Series, pa: float) -> str:
    """Whether these numbers bear out the three steps of the paper's argument: Markdown, a line a step.

    Each is where (bool) hard labels are what the teacher says: true ones of real images, its own of synthetic ones, and
    these again of the same images under P, of which the student is shown a share ``pa``.
    """
    counts = [(int((~right).sum()), len(right)) for right in (real, clean, attacked)]
    real_rate, _, rate = (count / of for count, of in counts)
    shown, (low, high) = pa * rate, wilson_interval(*counts[0])
    side = "below" if shown < low else "above" if shown > high else "within"
    place = f"{side} the real rate's interval" if shown else "nothing is brought back"
    alike = f"; the real rate would take pa = {real_rate / rate:.4f}" if rate and real_rate else ""
    back = f"with pa = {pa:g} the student is shown {100 * shown:.3f} %, {place}{alike}"
    intervals = [[100 * end for end in wilson_interval(*each)] for each in counts]
    form = "{:.2f} % ({} of {}; 95 % interval {:.2f} to {:.2f})"
    said = [form.format(100 * c / of, c, of, *ends) for (c, of), ends in zip(counts, intervals, strict=True)]
    steps = [
        (real_rate > 0, f"Real labels contradict the teacher now and then: {said[0]}."),
        (clean.all(), f"Labels that the teacher gives to synthetic images never do, asked twice: {said[1]}."),
        (rate > 0, f"The attack brings contradiction back: under P {said[2]}; {back}."),
    ]
    return "\n".join(f"{i}. {text} **{'Yes' if holds else 'No'}.**" for i, (holds, text) in enumerate(steps, 1))


def confidence_table(shown: pd.DataFrame) -> str:
    """Markdown, a row a ``name``: n, the share that is as labelled, confidence (mean, median) and ECE."""
    groups = shown.groupby("name", sort=False)
    columns = {
        "n": groups.size(),
        "predicted as labelled %": groups.right.mean().map(lambda share: f"{100 * share:.1f}"),
        "mean confidence": groups.confidence.mean().map("{:.3f}".format),
        "median": groups.confidence.median().map("{:.3f}".format),
        "ECE": groups[["confidence", "right"]].apply(expected_calibration_error).map("{:.3f}".format),
    }
    return markdown(pd.DataFrame(columns).rename_axis("images").reset_index())


def draw_confidence(shown: pd.DataFrame, path: Path) -> None:
    """The share of images of each ``name`` that the classifier is at most so sure of: a rising line each."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    groups = shown.groupby("name", sort=False).confidence
    for (name, values), (colour, style), marker in zip(groups, cycle(STYLES), cycle(MARKERS), strict=False):
        line = {"color": colour, "linestyle": style, "marker": marker, "markevery": max(1, len(values) // 8)}
        axes.ecdf(values, markersize=5, label=f"{name} (n = {len(values)})", **line)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axes.set_xlim(0, 1.01)
    label_axes(axes, "images at most that confident (%)", over="teacher's confidence")
    axes.legend(fontsize=8)
    save(figure, path)


def draw_reliability(judged: pd.DataFrame, path: Path, bins: int = BINS) -> None:
    """Share predicted as labelled over confidence, a line each of ``images``; larger marks for fuller bins."""
    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfectly calibrated")
    groups = judged.groupby("images", sort=False)
    for (name, frame), (colour, style), marker in zip(groups, cycle(STYLES), cycle(MARKERS), strict=False):
        found, error = reliability(frame, bins), expected_calibration_error(frame, bins)
        axes.plot(found.confidence, found.accuracy, color=colour, linestyle=style, linewidth=1)
        dots = {"color": colour, "marker": marker, "alpha": 0.8, "label": f"{name}, ECE {error:.3f}"}
        axes.scatter(found.confidence, found.accuracy, 15 + 150 * found.n / len(frame), **dots)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.03, 1.04))
    label_axes(axes, "share predicted as labelled", over="teacher's confidence (mean of the bin)")
    axes.legend(fontsize=8, markerscale=0.6)
    save(figure, path)
