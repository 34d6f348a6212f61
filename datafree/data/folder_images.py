"""The images of a folder as a split: read once into memory where they are small, else from the disk at every pass.

Threads read them. Pillow decodes and resizes outside the interpreter lock, and threads need no shared memory, catch no
signals that are meant for the run, and end with it.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from .image_files import centre, load_pixels, quieten, random_crop, size_of
from .placement import host_memory
from .specs import Images, Shape, Size, TensorImages, batched

Samples = list[tuple[str, int]]  # path, class index
Batch = tuple[Tensor, Tensor]
IN_MEMORY, SHARE = 2**30, 1 / 8  # bytes of a split, and share of the memory, that it may take; chosen by us
MOST_READERS = 8  # unless told otherwise; chosen by us
AHEAD, HEADERS = 2, 256  # batches that are read ahead of their use; headers that are
CPU_MAX, CFS = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")  # a container's share: cgroup v2, v1


def folder_images(samples: Samples, shape: Shape, train: bool, workers: int | None = None) -> Images:
    """A split of image files: in memory where it takes up to 1 GiB (and an eighth of all memory), else FolderImages.

    Training images that all have the wanted size come whole, for ``Augmentation`` to shift; if only one has another,
    all are cropped at random, anew at every pass, and none is kept in memory.

    Args:
        samples: as of FolderImages.
        shape: (C, H, W) of what comes out; C is 1 or 3.
        train: whether they are to be trained on.
        workers: as of FolderImages.

    Raises:
        DamagedData: at an image that is read now and cannot be.
    """
    images = FolderImages(samples, shape, workers)
    images.crops = train and images.first_of_another_size() is not None
    room = min(IN_MEMORY, SHARE * (host_memory() or math.inf))
    return images if images.crops or len(samples) * math.prod(shape) > room else images.in_memory()


class FolderImages:
    """A split that is read from ``<folder>/<class>/*`` a pass at a time.

    ``batches`` gives an image of the wanted size as it is, and of another the centre: see ``image_files.centre``.
    ``shuffled`` does so too or, where ``crops`` is set, crops at random. The crop of an image is seeded by the pass and
    the image, so it does not depend on how many readers there are.

    Args:
        samples: path and class index of each image.
        shape: (C, H, W) of what comes out; C is 1 or 3.
        workers: threads that read; by default as many as the job has processors, at most eight.
        crops: whether ``shuffled`` crops at random.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, samples: Samples, shape: Shape, workers: int | None = None, crops: bool = True):
        self.samples, self.shape, self.crops = samples, tuple(shape), crops
        self.workers = min(MOST_READERS, usable_processors()) if workers is None else max(1, workers)
        quieten()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def size(self) -> Size:
        return self.shape[1:]

    def first_of_another_size(self) -> str | None:
        """Its path, from the files' headers; None where all have the wanted one. Raises DamagedData likewise."""
        paths = [path for path, _ in self.samples]
        with ThreadPoolExecutor(self.workers) as readers:
            for first in range(0, len(paths), HEADERS):
                some = paths[first : first + HEADERS]
                for path, size in zip(some, readers.map(size_of, some), strict=True):
                    if size != self.size:
                        return path
        return None

    def part(self, first: int, step: int) -> "FolderImages":
        """See ``Images.part``."""
        return FolderImages(self.samples[first::step], self.shape, self.workers, self.crops)

    def in_memory(self) -> TensorImages:
        """All of them, as ``batches`` gives them. Raises DamagedData at an image that cannot be read."""
        return TensorImages(*next(self.batches(max(1, len(self)), "cpu")))

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[Batch]:
        """See ``Images.batches``. Raises DamagedData at an image that cannot be read."""
        rows = batched(range(len(self)), batch_size)
        return self._read(rows, device, lambda image, index: centre(image, self.size))

    def shuffled(
        self,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """See ``Images.shuffled``. Raises DamagedData at an image that cannot be read."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()

        def crop(image: Image, index: int) -> Image:
            if not self.crops:
                return centre(image, self.size)
            return random_crop(image, self.size, torch.Generator().manual_seed((seed + index) % 2**63))

        return self._read(batched(order, batch_size, drop_last, part), device, crop)

    def _read(
        self,
        batches: Iterable[Sequence[int]],
        device: torch.device | str,
        crop: Callable[[Image, int], Image],
    ) -> Iterator[Batch]:
        pin, started = torch.device(device).type == "cuda", deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="images") as readers:
            try:
                for rows in batches:
                    started.append(self._start(readers, rows, crop, pin))
                    if len(started) > AHEAD:
                        yield _finished(*started.popleft(), device, pin)
                while started:
                    yield _finished(*started.popleft(), device, pin)
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, readers: ThreadPoolExecutor, rows: Sequence[int], crop: Callable[[Image, int], Image], pin: bool
    ) -> tuple[Tensor, Tensor, list[Future]]:
        """Room for a batch, and what fills it."""
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=pin)
        levels, labels = images.numpy(), torch.tensor([self.samples[index][1] for index in rows])

        def read(place: int, index: int) -> None:
            levels[place] = load_pixels(self.samples[index][0], self.shape[0], lambda image: crop(image, index))

        return images, labels, [readers.submit(read, place, index) for place, index in enumerate(rows)]


def _finished(images: Tensor, labels: Tensor, reading: list[Future], device: torch.device | str, pinned: bool) -> Batch:
    for each in reading:
        each.result()
    return images.to(device, non_blocking=pinned), labels.to(device)  # a copy from there need not be waited for


def usable_processors() -> int:
    """How many processors this job may use: of its affinity and its container's share, not of the machine."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count()
    else:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):  # not there, or "max"
        quota, period = map(int, CPU_MAX.read_text().split())
        count = min(count, math.ceil(quota / period))
    with suppress(OSError, ValueError):
        quota, period = (int((CFS / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        count = min(count, math.ceil(quota / period)) if quota > 0 else count
    return max(1, count or 1)
