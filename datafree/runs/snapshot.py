"""A run's complete state after an epoch: last.pth, and beside it pool.bin, which only ever grows.

    save:  copy the state where the run is to go on meanwhile (--save_async, writer.py)
           append the new images to pool.bin, a chunk a round;  replace last.pth, which says how much of pool.bin counts
    load:  read of pool.bin what last.pth says, compare checksums, put every part's state where it was

A kill between the two leaves a longer pool.bin than last.pth knows of; the next save writes over the rest.

Of N processes each has a pool-N-K.bin, and all but the first write what is their own (streams, method) into one of two
files last-N-K-a.pth and -b.pth in turn, before last.pth says which of them counts. With another number of processes the
images are dealt out anew, and each process takes the streams of the one that had its number, or begins new ones.
"""

import copy
import itertools
import os
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from .. import files, processes
from ..data.pool import ImagePool
from ..engine.randomness import OWN as OF_ONE
from ..engine.randomness import global_states, set_global_states
from ..errors import UserError

STATE_FILE, POOL_FILE = "last.pth", "pool.bin"
OWN = ("streams", "method")  # parts that differ from process to process
ANEW = "start anew with --overwrite"


class Stateful(Protocol):
    """Whatever a run is made of: gives its state as tensors and plain values, and takes it back."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def pool_file(folder: Path, rank: int, size: int) -> Path:
    """Of one of so many processes."""
    return folder / (POOL_FILE if size == 1 else f"pool-{size}-{rank}.bin")


def own_file(folder: Path, rank: int, size: int, turn: str) -> Path:
    """What a process other than the first saves of its own."""
    return folder / f"last-{size}-{rank}-{turn}.pth"


def of_processes(folder: Path) -> list[str]:
    """Names of what several processes write, of which there is a file, or the beginning of one."""
    found = (re.match(r"\.?(last-\d+-\d+-[ab]\.pth|pool-\d+-\d+\.bin)", entry.name) for entry in folder.iterdir())
    return [match[1] for match in found if match]


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
        self._turn, self._before = "a", processes.size()  # number of processes that saved what is there

    def save(self) -> None:
        """Writes the state of now. Raises UserError where the disk is full or the folder gone; the last stays whole.

        Several processes call it together.
        """
        self._write(self._state(), self._new_images())

    def taken(self) -> Callable[[], None]:
        """What writes the state of now, whatever has become of it when it is called; of one process."""
        return partial(self._write, copy.deepcopy(self._state()), self._new_images())

    def _state(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self.parts.items()}  # in all processes: see sharding.py
        kept = {name: state for name, state in states.items() if name in OWN or processes.first()}
        chunks = {} if self.pool is None else {"pool_chunks": list(self.pool.chunks)}
        return kept | chunks | {"global_rng": global_states()}

    def _new_images(self) -> list[list[Tensor]]:
        """Chunks that are not in pool.bin yet, as views: images in the pool stay what they are."""
        done = len(self._checksums)
        chunks = [] if self.pool is None else self.pool.chunks
        ends = list(itertools.accumulate(chunks, initial=0))
        return [self.pool.rows(start, end) for start, end in itertools.pairwise(ends[done:])]

    def _write(self, own: dict[str, Any], images: list[list[Tensor]]) -> None:
        size, rank = processes.size(), processes.rank()
        if self.pool is not None:
            self._append(images)
            own |= {"pool_checksums": list(self._checksums)}
        self._turn = "b" if self._turn == "a" else "a"
        if rank > 0:
            files.save(own, own_file(self.folder, rank, size, self._turn))
        processes.wait_for_all()
        if rank == 0:
            files.save(own | {"processes": size, "turn": self._turn}, self.folder / STATE_FILE)
        processes.wait_for_all()  # before any file of the turn before may be written over
        if rank == 0 and size != self._before:
            self._remove_others()

    def _remove_others(self) -> None:
        """What another number of processes had saved."""
        self._before, size = processes.size(), processes.size()
        kept = {own_file(self.folder, k, size, turn) for k in range(1, size) for turn in "ab"}
        kept |= {pool_file(self.folder, k, size) for k in range(size)}
        for file in {self.folder / name for name in (*of_processes(self.folder), POOL_FILE)} - kept:
            file.unlink(missing_ok=True)

    def load(self) -> list[str]:
        """Restores every part; leaves them where nothing was saved yet.

        Returns:
            Lines for the log.

        Raises:
            UserError: where the files are damaged or of another run.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return []
        common = _state(path)
        size, rank, before = processes.size(), processes.rank(), common.get("processes", 1)
        try:
            self._turn, self._before = common.get("turn", "a"), before
            own = common if rank == 0 else None
            if 0 < rank < before:
                own = _state(own_file(self.folder, rank, before, self._turn))
            for name, part in self.parts.items():
                state = (own or common)[name] if name in OWN else common[name]
                if name == "streams":  # those of all, and its own; a process that is new begins its own
                    alike = {stream: value for stream, value in common[name].items() if OF_ONE not in stream}
                    state = alike | (own[name] if own else {})
                part.load_state_dict(state)
            if own is not None:
                set_global_states(own["global_rng"])
            if self.pool is not None and before == size:
                chunks, checksums = list(own["pool_chunks"]), list(own["pool_checksums"])
                _read_pool(self.pool, pool_file(self.folder, rank, size), chunks, checksums)
                self._checksums = checksums
            elif self.pool is not None:
                self._deal_out(common, before)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise UserError(f"run state {path} is of another run or version ({error!r})", ANEW) from None
        if before == size:
            return []
        told = f"saved by {before} processes, goes on with {size}"
        return [f"warning: {told}: images are dealt out anew and noise drawn otherwise, so numbers will differ"]

    def _deal_out(self, first: Mapping[str, Any], before: int) -> None:
        """Of the images of all former processes every so many-th, as one chunk: this process's part."""
        size, rank, seen, kept = processes.size(), processes.rank(), 0, []
        for former in range(before):
            own = first if former == 0 else _state(own_file(self.folder, former, before, self._turn))
            pool = self.pool.like(sum(own["pool_chunks"]))
            _read_pool(pool, pool_file(self.folder, former, before), own["pool_chunks"], own["pool_checksums"])
            kept.append([rows[(rank - seen) % size :: size].clone() for rows in pool.rows(0, len(pool))])
            seen += len(pool)
        columns = [torch.cat(parts) for parts in zip(*kept, strict=True)]
        self.pool.clear()
        self.pool.extend(len(columns[0]))
        for rows, values in zip(self.pool.rows(0, len(self.pool)), columns, strict=True):
            rows.copy_(values)

    def _append(self, images: list[list[Tensor]]) -> None:
        if not images:
            return
        path = pool_file(self.folder, processes.rank(), processes.size())
        before = sum(self.pool.chunks[: len(self._checksums)]) * self.pool.bytes_per_image
        try:
            with open(path, "r+b" if before else "wb") as file:
                if os.fstat(file.fileno()).st_size < before:
                    raise UserError(f"{path} has lost images since it was written", ANEW)
                file.seek(before)  # over what a save that was cut short may have left
                file.truncate()
                checksums = [_write_chunk(file, chunk) for chunk in images]
                files.sync(file)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "free some space, then --resume") from None
        self._checksums += checksums


def _state(path: Path) -> dict[str, Any]:
    content = files.load(path, "run state")
    if not isinstance(content, dict):
        raise UserError(f"run state {path} is no run state", ANEW)
    return content


def _read_pool(pool: ImagePool, path: Path, chunks: list[int], checksums: list[int]) -> None:
    """Into a pool, from its file. Raises UserError where that is not what it was."""
    wanted = sum(chunks) * pool.bytes_per_image
    try:
        found = path.stat().st_size if wanted else 0
        if found < wanted or sum(chunks) > pool.capacity:
            raise UserError(f"{path} has {found} bytes, {wanted} are wanted", ANEW)
        pool.clear()
        with open(path if wanted else os.devnull, "rb") as file:
            for count, checksum in zip(chunks, checksums, strict=True):
                start = len(pool)
                pool.extend(count)
                if _read_chunk(file, pool.rows(start, start + count)) != checksum:
                    raise UserError(f"{path} is damaged: a checksum in {STATE_FILE} does not hold", ANEW)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", ANEW) from None


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
