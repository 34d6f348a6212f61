"""Where the image pool lies: on the device, else in host memory, else in a memory-mapped file.

The first of these that the full pool fits in is taken. Half of a memory is left for networks, activations and the
system (chosen by us). The file has no name in its folder and goes with the process; for --resume there is pool.bin.
"""

import math
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from .. import processes
from ..errors import UserError
from ..files import LACKING

BLOCK = 2**24  # bytes written at a time
SHARE = 0.5  # of a memory that the pool may take
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Placement:
    """Where a pool lies, and what to say about it.

    Attributes:
        device: that batches are drawn to.
        kind: "device", "host" (memory) or "file".
        folder: for the file.
        why: for the log.
    """

    device: torch.device
    kind: str = "device"
    folder: Path | None = None
    why: str = ""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Room for values of any content. Raises UserError where the disk has not enough."""
        if self.kind == "file":
            return _mapped(self.folder, shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self.device if self.kind == "device" else "cpu")

    def __str__(self) -> str:
        where = {"device": f"on {self.device}", "host": "in host memory", "file": f"in a mapped file in {self.folder}"}
        return f"{where[self.kind]} ({self.why})"


def choose_placement(images: int, bytes_per_image: int, device: torch.device, folder: Path) -> Placement:
    """The fastest place that has room for that many images.

    Args:
        folder: where a file may be made, later; need not exist yet.

    Raises:
        UserError: if not even the disk has.
    """
    wanted, there, host = images * bytes_per_image, device_memory(device), host_memory()
    of_machine = wanted * processes.local()[1]  # every process on it has a pool
    if there is None or (wanted if device.type != "cpu" else of_machine) <= SHARE * there:
        return Placement(device, why=f"{gibibytes(wanted)} when full")
    reason = f"{gibibytes(wanted)} when full, {device} has {gibibytes(there)}"
    if device.type != "cpu":
        if host is None or of_machine <= SHARE * host:
            return Placement(device, "host", why=reason)
        reason += f", the host {gibibytes(host)}"
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = free_disk(existing)
    if 2 * of_machine > free:  # drawn from, and saved in pool.bin
        raise UserError(
            f"the pool of {images:,} images takes {reason}, the disk of {folder} {gibibytes(free)} free for two copies",
            "lower --epochs or --synthesis_batch_size, or choose another --run_root",
        )
    return Placement(device, "file", folder, reason)


def gibibytes(count: float) -> str:
    """For people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def device_memory(device: torch.device) -> int | None:
    """All the memory of a device in bytes, used or not: what is chosen does not depend on the moment. None: unknown."""
    if device.type in ("cpu", "mps"):  # Apple's GPU has the machine's memory
        return host_memory()
    return getattr(torch, device.type).get_device_properties(device).total_memory


def host_memory() -> int | None:
    """All the memory of the machine, or of the container that this runs in, in bytes; None where it cannot be told."""
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)


def free_disk(folder: Path) -> int:
    """Bytes free where that folder is."""
    return shutil.disk_usage(folder).free


def _mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            _reserve(file, size * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)
    except OSError as error:
        what = f"cannot reserve {gibibytes(size * dtype.itemsize)} for the pool in {folder}: {error.strerror}"
        raise UserError(what, "free some space") from None
    except RuntimeError as error:  # what PyTorch makes of a file system that maps no files
        what = f"cannot map a file for the pool in {folder} ({str(error).splitlines()[0]})"
        raise UserError(what, "choose a --run_root on a local disk, or fewer --epochs") from None


def _reserve(file: IO[bytes], size: int) -> None:
    """Has the disk set that much aside: holes would end the process when it is full, without a word."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        for done in range(0, size, BLOCK):
            file.write(bytes(min(BLOCK, size - done)))
        file.flush()
