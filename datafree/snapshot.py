"""A run's complete state after a round: last.pth, and beside it pool.bin, which only ever grows.

    save:  append the round's new images to pool.bin;  replace last.pth, which says how much of pool.bin counts
    load:  read of pool.bin what last.pth says, compare checksums, put every part's state where it was

A kill between the two leaves a longer pool.bin than last.pth knows of; the next save writes over the rest.
"""

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from . import checkpoint
from .data.pool import ImagePool
from .errors import UserError

STATE_FILE, POOL_FILE = "last.pth", "pool.bin"


class Stateful(Protocol):
    """Whatever a run is made of: gives its state as tensors and plain values, and takes it back."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Snapshot:
    """Saves and restores the parts of a run.

    Args:
        folder: the run folder.
        parts: by name; each gives and takes a state.
        pool: the image pool, or None for a run without one. What it holds beyond the last save is appended.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Stateful], pool: ImagePool | None = None):
        self.folder, self.parts, self.pool = Path(folder), parts, pool
        self._chunks: list[int] = []  # images a save, in order
        self._checksums: list[int] = []  # CRC-32 of each

    def save(self, progress: Mapping[str, Any]) -> None:
        """Writes the state of now; ``progress`` is plain values that the caller wants back.

        Raises:
            UserError: where the disk is full or the folder gone; the last state stays whole.
        """
        if self.pool is not None and len(self.pool) > sum(self._chunks):
            self._append(sum(self._chunks), len(self.pool))
        content = {name: part.state_dict() for name, part in self.parts.items()}
        on_gpu = torch.cuda.is_initialized()  # not woken for a run on the CPU
        global_rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if on_gpu else []}
        content |= {"progress": dict(progress), "pool_chunks": list(self._chunks), "global_rng": global_rng}
        content |= {"pool_checksums": list(self._checksums)}
        checkpoint.save(content, self.folder / STATE_FILE)

    def load(self) -> dict[str, Any] | None:
        """Restores every part; returns the progress, or None where nothing was saved yet.

        Raises:
            UserError: where the files are damaged or of another run.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        content, anew = checkpoint.load(path, "run state"), "start anew with --overwrite"
        if not isinstance(content, dict):
            raise UserError(f"run state {path} is no run state", anew)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            self._chunks, self._checksums = list(content["pool_chunks"]), list(content["pool_checksums"])
            torch.set_rng_state(content["global_rng"]["cpu"])
            of_gpus, progress = list(content["global_rng"]["cuda"]), dict(content["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise UserError(f"run state {path} is of another run or version ({error!r})", anew) from None
        if of_gpus and torch.cuda.is_initialized() and len(of_gpus) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(of_gpus)
        if self.pool is not None:
            self._read_pool()
        return progress

    def _append(self, start: int, end: int) -> None:
        path, before = self.folder / POOL_FILE, start * self.pool.bytes_per_image
        checksum = 0
        try:
            with open(path, "r+b" if start else "wb") as file:
                if os.fstat(file.fileno()).st_size < before:
                    raise UserError(f"{path} has lost images since it was written", "start anew with --overwrite")
                file.seek(before)  # over what a save that was cut short may have left
                file.truncate()
                for rows in self.pool.rows(start, end):
                    data = rows.cpu().contiguous().numpy().tobytes()
                    checksum = zlib.crc32(data, checksum)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "free some space, then --resume") from None
        self._chunks.append(end - start)
        self._checksums.append(checksum)

    def _read_pool(self) -> None:
        path, wanted = self.folder / POOL_FILE, sum(self._chunks) * self.pool.bytes_per_image
        anew = "start anew with --overwrite"
        try:
            found = path.stat().st_size if wanted else 0
            if found < wanted or wanted > self.pool.bytes_per_image * self.pool.capacity:
                raise UserError(f"{path} has {found} bytes, {wanted} are wanted", anew)
            with open(path, "rb") if wanted else open(os.devnull, "rb") as file:
                self.pool.clear()
                for count, checksum in zip(self._chunks, self._checksums, strict=True):
                    if self._read_chunk(file, count) != checksum:
                        raise UserError(f"{path} is damaged: a checksum in {STATE_FILE} does not hold", anew)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", anew) from None

    def _read_chunk(self, file: IO[bytes], count: int) -> int:
        """The next ``count`` images into the pool; returns the CRC-32 of what was read."""
        start, checksum = len(self.pool), 0
        self.pool.extend(count)
        for rows in self.pool.rows(start, start + count):
            data = bytearray(file.read(rows.nbytes))
            checksum = zlib.crc32(data, checksum)
            rows.copy_(torch.frombuffer(data, dtype=rows.dtype).view(rows.shape))
        return checksum


class SavedPool:
    """The images of a run's pool.bin by round, without the run: each save appended one round's.

    Args:
        folder: the run folder.
        img_size: H = W in pixels.
        twins: whether the run's pool had twins and labels beside the images.

    Raises:
        UserError: where last.pth, which says how pool.bin is divided, cannot be read.
    """

    def __init__(self, folder: Path, img_size: int, twins: bool = False):
        self.path, self._size = Path(folder) / POOL_FILE, img_size
        self._bytes_per_image = ImagePool(1, img_size, twins=twins).bytes_per_image
        content = checkpoint.load(Path(folder) / STATE_FILE, "run state")
        try:
            self._chunks, self._checksums = list(content["pool_chunks"]), list(content["pool_checksums"])
        except (KeyError, TypeError) as error:
            what = f"{Path(folder) / STATE_FILE} does not say how {POOL_FILE} is divided ({error!r})"
            raise UserError(what, "it is of another version, or of no run with a pool") from None

    def __len__(self) -> int:
        """Rounds."""
        return len(self._chunks)

    def images(self, number: int) -> torch.Tensor:
        """The images that round ``number``, from 1, added: uint8 (B, 3, H, W). Raises UserError where damaged."""
        count = self._chunks[number - 1]
        try:
            with open(self.path, "rb") as file:
                file.seek(sum(self._chunks[: number - 1]) * self._bytes_per_image)
                data = bytearray(file.read(count * self._bytes_per_image))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}", "check the run folder") from None
        if zlib.crc32(data) != self._checksums[number - 1]:
            raise UserError(
                f"{self.path} is damaged in round {number}", "its checksum does not hold: make the run anew"
            )
        shape = (count, 3, self._size, self._size)
        return torch.frombuffer(data, dtype=torch.uint8)[: math.prod(shape)].view(shape)  # twins, labels come after
