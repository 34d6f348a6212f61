"""Lessons of a round, and data echoing (Choi et al. 2019): a view, with the teacher's answer on it, serves some steps.

Drawing, augmenting and asking the teacher are done once a view. Views of a round's batches are mixed, so that one
comes back among others; teacher and student see the same crop, as function matching wants it (Beyer et al. 2022). A
method without a pool makes them all before the first step on any.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.batch import Batch, Rows

WINDOW_BYTES, LEAST_BATCHES = 2**28, 8  # of views that are mixed; chosen by us


class Source(Protocol):
    """Where batches come from: the pool, or a method that makes them anew. What chance decides is drawn first."""

    def drawn(self, count: int, size: int) -> Iterator[Rows]: ...

    def made(self, drawn: Rows) -> Batch: ...


class Teaching(Protocol):
    """What the student is taught about a batch: see ``datafree.targets``."""

    def lesson(self, batch: Batch) -> Batch: ...

    def loss(self, lesson: Batch, student: torch.nn.Module) -> Tensor: ...


@dataclass(frozen=True)
class LessonOf:
    """Makes a lesson of what a source has drawn."""

    source: Source
    targets: Teaching

    def __call__(self, drawn: Rows) -> Batch:
        return self.targets.lesson(self.source.made(drawn))


def lessons(
    source: Source, targets: Teaching, steps: int, size: int, echo: int, rng: torch.Generator | None
) -> tuple[Iterator[Rows], Callable[[Rows], Batch]]:
    """What ``steps`` steps are on, ``steps / echo`` batches of the source, each image ``echo`` times; and what makes a
    lesson of each.

    Args:
        source, targets: where batches come from, and what makes a lesson of one.
        steps: how many lessons.
        size: images of a lesson.
        echo: how many lessons an image is in, with the same crop and answer; 1: batches as they come.
        rng: mixes images; on their device; None where ``echo`` is 1.
    """
    make = LessonOf(source, targets)
    if echo == 1:
        return source.drawn(steps, size), make
    fresh = -(-steps // echo)
    given = _mixed(map(make, source.drawn(fresh, size)), fresh, size, echo, rng)
    return (lesson.rows for lesson in itertools.islice(given, steps)), Batch.of


def _mixed(ready: Iterator[Batch], fresh: int, size: int, echo: int, rng: torch.Generator) -> Iterator[Batch]:
    """All images of ``fresh`` lessons, ``echo`` times, in windows of about ``WINDOW_BYTES``."""
    first = next(ready)
    most = max(LEAST_BATCHES, WINDOW_BYTES // (4 * first.images.numel()))
    windows = -(-fresh // most)
    counts = [fresh // windows + (at < fresh % windows) for at in range(windows)]
    ready = itertools.chain([first], ready)
    for count in counts:
        yield from echoes(list(itertools.islice(ready, count)), size, echo, rng)


def echoes(window: list[Batch], size: int, echo: int, rng: torch.Generator) -> Iterator[Batch]:
    """All images of some batches, ``echo`` times, each time in another order, ``size`` at once."""
    images = torch.cat([batch.images for batch in window])
    columns = {name: torch.cat([batch.columns[name] for batch in window]) for name in window[0].columns}
    for _ in range(echo):
        for rows in torch.randperm(len(images), generator=rng, device=images.device).split(size):
            yield Batch(images[rows], {name: column[rows] for name, column in columns.items()})
