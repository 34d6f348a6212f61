"""A run's complete state after an epoch: last.pth, and beside it pool.bin, which only ever grows.

    save:  append the new images to pool.bin, a chunk a round;  replace last.pth, which says how much of pool.bin counts
    load:  read of pool.bin what last.pth says, compare checksums, put every part's state where it was

A kill between the two leaves a longer pool.bin than last.pth knows of; the next save writes over the rest.
"""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from .. import files
from ..data.pool import ImagePool
from ..errors import UserError

STATE_FILE, POOL_FILE = "last.pth", "pool.bin"
ANEW = "start anew with --overwrite"


class Stateful(Protocol):
    """Whatever a run is made of: gives its state as tensors and plain values, and takes it back."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def saved_part(folder: Path, name: str) -> Mapping[str, Any] | None:
    """A part's state as it is in a run folder; None where nothing was saved yet. Raises UserError for a damaged one."""
    path = Path(folder) / STATE_FILE
    content = files.load(path, "run state") if path.exists() else None
    part = content.get(name) if isinstance(content, dict) else None
    return part if isinstance(part, Mapping) else None


class Snapshot:
    """Saves and restores the parts of a run.

    Args:
        folder: the run folder.
        parts: by name; each gives and takes a state.
        pool: the image pool, or None for a run without one. What it holds beyond the last save is appended.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Stateful], pool: ImagePool | None = None):
        self.folder, self.parts, self.pool = Path(folder), dict(parts), pool
        self._checksums: list[int] = []  # CRC-32 of each chunk that is in pool.bin

    def save(self) -> None:
        """Writes the state of now. Raises UserError where the disk is full or the folder gone; the last stays whole."""
        content = {name: part.state_dict() for name, part in self.parts.items()}
        if self.pool is not None:
            self._append()
            content |= {"pool_chunks": list(self.pool.chunks), "pool_checksums": list(self._checksums)}
        on_gpu = torch.cuda.is_initialized()  # not woken for a run on the CPU
        cuda = torch.cuda.get_rng_state_all() if on_gpu else []
        files.save(content | {"global_rng": {"cpu": torch.get_rng_state(), "cuda": cuda}}, self.folder / STATE_FILE)

    def load(self) -> None:
        """Restores every part; leaves them where nothing was saved yet.

        Raises:
            UserError: where the files are damaged or of another run.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        content = files.load(path, "run state")
        if not isinstance(content, dict):
            raise UserError(f"run state {path} is no run state", ANEW)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            torch.set_rng_state(content["global_rng"]["cpu"])
            of_gpus = list(content["global_rng"]["cuda"])
            if of_gpus and torch.cuda.is_initialized() and len(of_gpus) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(of_gpus)
            if self.pool is not None:
                self._read_pool(list(content["pool_chunks"]), list(content["pool_checksums"]))
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise UserError(f"run state {path} is of another run or version ({error!r})", ANEW) from None

    def _append(self) -> None:
        done = len(self._checksums)
        new, start = self.pool.chunks[done:], sum(self.pool.chunks[:done])
        if not new:
            return
        path, before = self.folder / POOL_FILE, start * self.pool.bytes_per_image
        try:
            with open(path, "r+b" if start else "wb") as file:
                if os.fstat(file.fileno()).st_size < before:
                    raise UserError(f"{path} has lost images since it was written", ANEW)
                file.seek(before)  # over what a save that was cut short may have left
                file.truncate()
                checksums = []
                for count in new:
                    checksums.append(_write_chunk(file, self.pool.rows(start, start + count)))
                    start += count
                files.sync(file)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "free some space, then --resume") from None
        self._checksums += checksums

    def _read_pool(self, chunks: list[int], checksums: list[int]) -> None:
        path, wanted = self.folder / POOL_FILE, sum(chunks) * self.pool.bytes_per_image
        try:
            found = path.stat().st_size if wanted else 0
            if found < wanted or sum(chunks) > self.pool.capacity:
                raise UserError(f"{path} has {found} bytes, {wanted} are wanted", ANEW)
            self.pool.clear()
            with open(path if wanted else os.devnull, "rb") as file:
                for count, checksum in zip(chunks, checksums, strict=True):
                    start = len(self.pool)
                    self.pool.extend(count)
                    if _read_chunk(file, self.pool.rows(start, start + count)) != checksum:
                        raise UserError(f"{path} is damaged: a checksum in {STATE_FILE} does not hold", ANEW)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", ANEW) from None
        self._checksums = checksums


def _write_chunk(file: IO[bytes], columns: list[Tensor]) -> int:
    """Column after column; returns the CRC-32 of what was written."""
    checksum = 0
    for rows in columns:
        data = rows.cpu().contiguous().numpy().tobytes()
        checksum = zlib.crc32(data, checksum)
        file.write(data)
    return checksum


def _read_chunk(file: IO[bytes], columns: list[Tensor]) -> int:
    """Into these views of the pool; returns the CRC-32 of what was read."""
    checksum = 0
    for rows in columns:
        data = bytearray(file.read(rows.nbytes))
        checksum = zlib.crc32(data, checksum)
        rows.copy_(torch.frombuffer(data, dtype=rows.dtype).view(rows.shape))
    return checksum
