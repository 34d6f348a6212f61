"""The synthetic images that a run keeps of its rounds, oldest first: from its pool, else TensorBoard, else the newest.

What there is is named in ``source``, since each shows something else of a round.
"""

import io
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


def images_over_rounds(
    path: Path, config: dict[str, Any], img_size: int, rounds: int = ROUNDS, images: int = IMAGES
) -> Samples | None:
    """The first images of evenly spaced rounds, the first and the last among them; None where a run kept none.

    Raises:
        UserError: where the pool is there but damaged.
    """
    if (path / POOL_FILE).exists() and (path / STATE_FILE).exists():
        found = _from_pool(path, config, img_size, rounds, images)
    else:
        found = _from_board(path / "tensorboard", img_size, rounds, images) or _newest(path, images)
    return found if found and found.images.numel() else None


def _from_pool(path: Path, config: dict[str, Any], img_size: int, rounds: int, images: int) -> Samples:
    twins = bool(config.get("hl")) and not config.get("no_aea") and config.get("attack_at") == "pool"
    pool = SavedPool(path, img_size, twins)
    numbers = evenly_spaced(list(range(1, len(pool) + 1)), rounds)
    strips = [pool.images(number)[:images] for number in numbers]
    return Samples(_labels(numbers), _stack(strips, img_size), "the pool that the student learnt from (pool.bin)")


def _from_board(folder: Path, img_size: int, rounds: int, images: int) -> Samples | None:
    """From the upper row of each grid that the run drew (``RunFolder.show_images``)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    if not folder.is_dir():
        return None
    events = EventAccumulator(str(folder), size_guidance={"images": 0})  # 0: all of them
    events.Reload()
    if "synthetic" not in events.Tags()["images"]:
        return None
    grids = {event.step: event.encoded_image_string for event in events.Images("synthetic")}
    numbers = evenly_spaced(sorted(grids), rounds)
    strips = [_upper_row(grids[number], img_size, images) for number in numbers]
    return Samples(_labels(numbers), _stack(strips, img_size), "the image grids in TensorBoard")


def _upper_row(png: bytes, img_size: int, images: int) -> Tensor:
    """The images of a grid with lines of one pixel around them: uint8 (N, 3, H, W)."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)
    row = pixels[:, 1 : 1 + img_size, 1:]
    cells = row.unfold(2, img_size, img_size + 1) if row.shape[2] >= img_size else row.new_empty(3, img_size, 0, 0)
    return cells.permute(2, 0, 1, 3)[:images]  # (3, H, N, W) -> (N, 3, H, W)


def _newest(path: Path, images: int) -> Samples | None:
    file = path / "synthetic.pth"
    if not file.exists():
        return None
    newest = to_levels(checkpoint.load(file, "synthetic images"))[:images].unsqueeze(0)
    return Samples(["newest"], newest, "the newest batch (synthetic.pth); those of earlier rounds were not kept")


def _labels(numbers: list[int]) -> list[str]:
    return [f"round {number}" for number in numbers]


def _stack(strips: list[Tensor], img_size: int) -> Tensor:
    """One tensor, as many images of each round as the round with the fewest has."""
    shortest = min(map(len, strips), default=0)
    empty = torch.empty(0, 0, 3, img_size, img_size, dtype=torch.uint8)
    return torch.stack([strip[:shortest] for strip in strips]) if strips else empty


def evenly_spaced(numbers: list[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among them."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]
