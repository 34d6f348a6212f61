"""A run's complete state after a round: last.pth, and beside it pool.bin, which only ever grows.

    save:  append the round's new images to pool.bin;  replace last.pth, which says how much of pool.bin counts
    load:  cut pool.bin to what last.pth says, read it back, put every part's state where it was

A kill between the two leaves a longer pool.bin than last.pth knows of; the next load cuts the rest off.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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

    def save(self, progress: Mapping[str, Any]) -> None:
        """Writes the state of now; ``progress`` is plain values that the caller wants back.

        Raises:
            UserError: where the disk is full or the folder gone; the last state stays whole.
        """
        if self.pool is not None and len(self.pool) > sum(self._chunks):
            self._append(sum(self._chunks), len(self.pool))
        content = {name: part.state_dict() for name, part in self.parts.items()}
        global_rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        content |= {"progress": dict(progress), "pool_chunks": list(self._chunks), "global_rng": global_rng}
        checkpoint.save(content, self.folder / STATE_FILE)

    def load(self) -> dict[str, Any] | None:
        """Restores every part; returns the progress, or None where nothing was saved yet.

        Raises:
            UserError: where the files are damaged or of another run.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        content = checkpoint.load(path, "run state")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            self._chunks = list(content["pool_chunks"])
            torch.set_rng_state(content["global_rng"]["cpu"])
            progress = dict(content["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(f"run state {path} is of another run ({error})", "start anew with --overwrite") from None
        if torch.cuda.is_available() and len(content["global_rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["global_rng"]["cuda"])
        if self.pool is not None:
            self._read_pool()
        return progress

    def _append(self, start: int, end: int) -> None:
        path = self.folder / POOL_FILE
        try:
            with open(path, "r+b" if path.exists() else "wb") as file:
                file.seek(start * self.pool.bytes_per_image)  # over what a save that was cut short may have left
                file.truncate()
                for rows in self.pool.rows(start, end):
                    file.write(rows.cpu().contiguous().numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "free some space, then --resume") from None
        self._chunks.append(end - start)

    def _read_pool(self) -> None:
        path, wanted = self.folder / POOL_FILE, sum(self._chunks) * self.pool.bytes_per_image
        try:
            found = path.stat().st_size if wanted else 0
            if found < wanted or wanted > self.pool.bytes_per_image * self.pool.capacity:
                raise UserError(f"{path} has {found} bytes, {wanted} are wanted", "start anew with --overwrite")
            with open(path, "rb") if wanted else open(os.devnull, "rb") as file:
                self.pool.clear()
                for count in self._chunks:
                    start = len(self.pool)
                    self.pool.extend(count)
                    for rows in self.pool.rows(start, start + count):
                        data = torch.frombuffer(bytearray(file.read(rows.nbytes)), dtype=rows.dtype)
                        rows.copy_(data.view(rows.shape))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", "start anew with --overwrite") from None
