"""Which classes a classifier gets right, and what it takes the others for."""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """How often class i was called j: int64 (C, C) on the CPU, a row a true class, a column a predicted one.

    Args:
        predicted, true: class indices (N,), int64.
        classes: C.

    Raises:
        ValueError: where the two differ in length or an index is not one of 0..C-1.
    """
    if predicted.shape != true.shape or predicted.ndim != 1:
        raise ValueError(f"one prediction an image is wanted, not {tuple(predicted.shape)} for {tuple(true.shape)}")
    both = torch.stack((true, predicted)).cpu()
    if both.numel() and not 0 <= both.min() <= both.max() < classes:
        raise ValueError(f"class indices must be 0..{classes - 1}, not {both.min()}..{both.max()}")
    cells = both[0] * classes + both[1]
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's images that were called by their name, in percent: float64 (C,), NaN where it has none."""
    return 100 * matrix.diagonal().double() / matrix.sum(1)


def accuracy(matrix: Tensor) -> float:
    """Share of all images that were called by their name, in percent."""
    return 100 * matrix.diagonal().sum().item() / max(1, matrix.sum().item())


def worst_classes(matrix: Tensor, most: int = 10) -> list[int]:
    """The classes of lowest accuracy, worst first; of equal ones the lower index first. Without those of no image."""
    accuracies = class_accuracy(matrix).nan_to_num(float("inf"))
    order = accuracies.sort(stable=True).indices[:most].tolist()
    return [index for index in order if accuracies[index] != float("inf")]


def mistakes(matrix: Tensor, most: int = 10) -> list[tuple[int, int, int]]:
    """The most frequent ones, as (true class, predicted class, times), the most frequent first."""
    wrong = matrix.clone()
    wrong.fill_diagonal_(0)
    times, cells = wrong.flatten().sort(descending=True, stable=True)
    pairs = zip(times[:most].tolist(), cells[:most].tolist(), strict=True)
    return [(cell // len(matrix), cell % len(matrix), count) for count, cell in pairs if count]
