"""What others published: top-1 accuracies (%) on CIFAR, to stand beside ours. None of them was measured here."""

from .results import Task

_PAIRS = (
    *(("resnet34", "resnet18"), ("vgg11", "resnet18")),
    *(("wrn40_2", "wrn16_1"), ("wrn40_2", "wrn40_1"), ("wrn40_2", "wrn16_2")),
)
# The teachers' and AEAHL-RG's are those of the paper's figure (400 distillation rounds), Fast-10's those of the README
# of github.com/zju-vipa/Fast-Datafree (200 rounds).
_ROWS = {
    "teacher": {"cifar10": (95.70, 92.25, 94.87, 94.87, 94.87), "cifar100": (78.05, 71.32, 75.83, 75.83, 75.83)},
    "AEAHL-RG": {"cifar10": (94.50, 91.24, 89.26, 93.18, 92.37), "cifar100": (74.13, 68.93, 56.60, 67.40, 67.73)},
    "Fast-10": {"cifar10": (94.05, 90.53, 89.29, 92.51, 92.45), "cifar100": (74.34, 67.44, 54.02, 63.91, 65.12)},
}
PUBLISHED = {
    source: {
        Task(dataset, *pair): value
        for dataset, values in rows.items()
        for pair, value in zip(_PAIRS, values, strict=True)
    }
    for source, rows in _ROWS.items()
}
