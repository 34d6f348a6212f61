"""The synthetic images that a run keeps of its rounds, oldest first: from its pool, else TensorBoard, else the newest.

What there is is named in ``source``, since each shows something else of a round.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import checkpoint
from ..data.augment import to_levels
from ..snapshot import POOL_FILE, STATE_FILE, SavedPool

ROUNDS, IMAGES = 10, 8  # shown at most; chosen by us


@dataclass(frozen=True)
class Samples:
    """Some images of some rounds.

    Attributes:
        labels: what each row is of, "round 12", the oldest first.
        images: uint8 (rows, images, 3, H, W).
        source: where they were found, in words.
    """

    labels: list[str]
    images: Tensor
    source: str


def from_pool(path: Path, config: dict[str, Any], img_size: int) -> Samples | None:
    """The first images of evenly spaced rounds, the first and the last among them; None where there is no pool.

    Raises:
        UserError: where pool.bin is damaged, or last.pth does not say how to read it.
    """
    if not all((path / name).exists() for name in (POOL_FILE, STATE_FILE)):
        return None
    twins = bool(config.get("hl")) and not config.get("no_aea") and config.get("attack_at") == "pool"
    pool = SavedPool(path, img_size, twins)
    numbers = evenly_spaced(range(1, len(pool) + 1))
    strips = [pool.images(number)[:IMAGES] for number in numbers]
    return _samples(numbers, strips, "the pool that the student learnt from (pool.bin)")


def from_board(path: Path, config: dict[str, Any], img_size: int) -> Samples | None:
    """Likewise, of the rounds whose images the run showed in TensorBoard: the upper row of each grid."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    if not (path / "tensorboard").is_dir():
        return None
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0})  # 0: all of them
    events.Reload()
    if "synthetic" not in events.Tags()["images"]:
        return None
    grids = {event.step: event.encoded_image_string for event in events.Images("synthetic")}
    numbers = evenly_spaced(sorted(grids))
    strips = [_upper_row(grids[number], img_size) for number in numbers]
    return _samples(numbers, strips, "the image grids in TensorBoard")


def from_newest(path: Path, config: dict[str, Any], img_size: int) -> Samples | None:
    """The newest batch alone. Raises UserError where its file is damaged."""
    file = path / "synthetic.pth"
    if not file.exists():
        return None
    newest = to_levels(checkpoint.load(file, "synthetic images"))[:IMAGES].unsqueeze(0)
    return Samples(["newest"], newest, "the newest batch (synthetic.pth); those of earlier rounds were not kept")


SOURCES = (from_pool, from_board, from_newest)  # the best first


def evenly_spaced(numbers: Sequence[int], most: int = ROUNDS) -> list[int]:
    """At most so many of them, the first and the last among them."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]


def _samples(numbers: list[int], strips: list[Tensor], source: str) -> Samples | None:
    """As many images of each round as the round with the fewest has; None where that is none."""
    shortest = min(map(len, strips), default=0)
    if not shortest:
        return None
    return Samples([f"round {n}" for n in numbers], torch.stack([strip[:shortest] for strip in strips]), source)


def _upper_row(png: bytes, img_size: int) -> Tensor:
    """The images in the first row of a grid with lines of one pixel between them: uint8 (N, 3, H, W)."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)
    row = pixels[:, 1 : 1 + img_size, 1:]
    return row.unfold(2, img_size, img_size + 1).permute(2, 0, 1, 3)[:IMAGES]  # (3, H, N, W) -> (N, 3, H, W)
