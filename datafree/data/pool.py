"""The pool of synthetic images: uint8, with columns beside them, filled round by round and drawn from at random."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor

from .augmentation import Augmentation, to_levels, to_pixels
from .batch import Batch, Column, Rows
from .placement import Placement
from .specs import Shape

CROP = ("crop: shifts", "crop: mirrored")  # beside the columns, of a batch that is drawn and not cropped yet


def bytes_per_image(columns: Mapping[str, Column]) -> int:
    """What an image takes with all that is kept beside it."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in columns.values())


def image_column(shape: Shape) -> Column:
    """uint8 (C, H, W). Every column of that shape and type holds images, stored as levels and drawn as pixels."""
    return shape, torch.uint8


class ImagePool:
    """Room for ``capacity`` images.

    Args:
        capacity: the most images it can hold.
        columns: what is kept of each image; "images" among them, the first.
        placement: where it lies and where drawn batches go.
        augmentation: applied to what is drawn; an image and its twin get the same crop.
        crops, draws: random streams: of the device that batches go to, and of where the pool lies.
    """

    def __init__(
        self,
        capacity: int,
        columns: Mapping[str, Column],
        placement: Placement,
        augmentation: Augmentation,
        crops: torch.Generator,
        draws: torch.Generator,
    ):
        self.capacity, self.columns, self.placement, self.size = capacity, dict(columns), placement, 0
        self.chunks: list[int] = []  # rows of each addition
        self.augmentation, self.crops, self.draws = augmentation, crops, draws
        self.bytes_per_image = bytes_per_image(columns)
        self._reader: ThreadPoolExecutor | None = None

    @cached_property
    def storage(self) -> dict[str, Tensor]:
        """Made when first needed."""
        return {
            name: self.placement.empty((self.capacity, *shape), dtype) for name, (shape, dtype) in self.columns.items()
        }

    def __len__(self) -> int:
        return self.size

    def add(self, batch: Batch) -> None:
        """Takes in a batch with all the columns that the pool has. Raises ValueError where it is full."""
        given, start = {"images": batch.images} | batch.columns, self.size
        self.extend(len(batch))
        for name, column in self.storage.items():
            column[start : self.size] = to_levels(given[name]) if self._holds_images(name) else given[name]

    def _holds_images(self, name: str) -> bool:
        return self.columns[name] == self.columns["images"]

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """``count`` batches of ``size`` images, uniformly with replacement, augmented; read one ahead of their use."""
        return map(self.made, self.drawn(count, size))

    def drawn(self, count: int, size: int) -> Iterator[Rows]:
        """Of so many batches all that chance decides: rows, images as levels, and how these are cropped."""
        upcoming = self._request(size)
        for left in reversed(range(count)):
            rows = upcoming()
            upcoming = self._request(size) if left else None
            yield rows | dict(zip(CROP, self.augmentation.draw(size, self.crops), strict=True))

    def made(self, drawn: Rows) -> Batch:
        """The batch that :meth:`drawn` has drawn."""
        rows = {name: values for name, values in drawn.items() if name not in CROP}
        images = [name for name in rows if self._holds_images(name)]
        levels = torch.cat([rows[name] for name in images], 1) if len(images) > 1 else rows["images"]
        cropped = to_pixels(self.augmentation.cut(levels, *(drawn[name] for name in CROP)))
        parts = cropped.split(rows["images"].shape[1], 1)
        return Batch.of({**rows, **dict(zip(images, parts, strict=True))})

    def _request(self, size: int) -> Callable[[], Rows]:
        """Draws now and reads meanwhile: call what is returned for the rows, on the device."""
        index = torch.randint(self.size, (size,), generator=self.draws, device=self.draws.device)
        if self.placement.kind == "device":
            return partial(self._read, index)
        self._reader = self._reader or ThreadPoolExecutor(1, thread_name_prefix="pool")
        reading = self._reader.submit(self._read, index)
        return lambda: {
            name: rows.to(self.placement.device, non_blocking=self._pins) for name, rows in reading.result().items()
        }

    @property
    def _pins(self) -> bool:
        """Whether rows wait in pinned memory, from where a copy need not be waited for."""
        return self.placement.kind != "device" and self.placement.device.type == "cuda"

    def _read(self, index: Tensor) -> Rows:
        rows = {name: column.index_select(0, index) for name, column in self.storage.items()}
        if self._pins:
            return {name: values.pin_memory() for name, values in rows.items()}
        return rows

    def rows(self, start: int, end: int) -> list[Tensor]:
        """What the pool holds of images start..end-1, as views, a tensor a column: for saving and restoring."""
        return [column[start:end] for column in self.storage.values()]

    def extend(self, count: int) -> None:
        """Makes ``count`` more rows part of the pool. Raises ValueError where it is full."""
        if self.size + count > self.capacity:
            raise ValueError(f"the pool holds {self.capacity} images; {self.size + count} would be too many")
        self.size += count
        self.chunks.append(count)

    def like(self, capacity: int) -> "ImagePool":
        """An empty one for so many images of the same kind, in host memory."""
        return ImagePool(
            capacity, self.columns, Placement(torch.device("cpu")), self.augmentation, self.crops, self.draws
        )

    def clear(self) -> None:
        """Empties the pool."""
        self.size, self.chunks = 0, []
