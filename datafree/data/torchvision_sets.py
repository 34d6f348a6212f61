"""Data sets that torchvision knows how to fetch and verify, where it would put them: ``data_root`` is its ``root``.

Each loader is ``(data_root, train, download) -> TensorImages``. It raises MissingData where there is nothing on disk
and nothing could be downloaded, DamagedData where what is on disk is incomplete, altered or unreadable.
"""

import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .specs import DamagedData, MissingData, TensorImages

PATIENCE = 30  # seconds without an answer after which a download counts as failed; chosen by us
Read = Callable[..., tuple[Tensor, Tensor]]  # (torchvision.datasets, root, train, download) -> images, labels


def _read_mnist(datasets: ModuleType, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Black margins make the images 32x32 as in LeCun et al. (1998)."""
    mnist = datasets.MNIST(root, train, download=download)
    return F.pad(mnist.data, (2, 2, 2, 2)).unsqueeze(1), mnist.targets  # (N, 28, 28) -> (N, 1, 32, 32)


def _read_svhn(datasets: ModuleType, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """The cropped digits; label 0 is the digit 0."""
    svhn = datasets.SVHN(root, "train" if train else "test", download=download)
    return torch.from_numpy(np.ascontiguousarray(svhn.data)), torch.from_numpy(svhn.labels)


def _read_cifar(kind: str, datasets: ModuleType, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """The python version; fine labels of CIFAR-100."""
    cifar = getattr(datasets, kind)(root, train, download=download)
    images = np.ascontiguousarray(cifar.data.transpose(0, 3, 1, 2))  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor(cifar.targets)


def _load(name: str, places: tuple[str, str], read: Read, data_root: Path, train: bool, download: bool) -> TensorImages:
    """The split from disk; where there is none, from the network if ``download`` allows it.

    torchvision checks the published checksums of CIFAR and SVHN before it reads them, so a CIFAR pickle that someone
    changed is never unpickled. What is on disk is never written over.

    Args:
        name: of the data set, for messages.
        places: the file or folder of training and of test images under ``data_root``.
        read: how torchvision reads it.
    """
    from torchvision import datasets  # slow; and here one that is broken is not taken for broken data

    read = partial(read, datasets)
    data_root, place = Path(data_root), places[0 if train else 1]
    where = data_root / place
    packed = _packed(where)
    if _is_empty(where):
        what = f"no {name} images in {where}" + (f": {packed} is still packed" if packed else "")
        remedy = f"put the data there, or name the folder that holds {place} with --data_root"
        if not download:
            raise MissingData(what, f"unpack {packed} where it is" if packed else remedy)
        try:
            _fetch(partial(read, train=train, download=True), data_root, place)
        except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:  # network, disk or checksum
            raise MissingData(f"{what}, and downloading them failed ({_reason(error)})", remedy) from error
    try:
        images, labels = read(data_root, train, False)
        return TensorImages(images, labels.long())
    except MemoryError:
        raise
    except Exception as error:  # torchvision, pickle, numpy and scipy have a dozen ways to say that a file is bad
        raise DamagedData(
            f"the {name} data in {where} is incomplete or damaged ({_reason(error)})",
            f"unpack {packed} again" if packed else "remove it, then download it again or put a good copy there",
        ) from error


CIFAR10, CIFAR100 = "cifar-10-batches-py", "cifar-100-python"
ARCHIVES = {CIFAR10: "cifar-10-python.tar.gz", CIFAR100: "cifar-100-python.tar.gz"}  # by what is in them
load_mnist = partial(_load, "mnist", ("MNIST/raw",) * 2, _read_mnist)
load_svhn = partial(_load, "svhn", ("train_32x32.mat", "test_32x32.mat"), _read_svhn)
load_cifar10 = partial(_load, "cifar10", (CIFAR10,) * 2, partial(_read_cifar, "CIFAR10"))
load_cifar100 = partial(_load, "cifar100", (CIFAR100,) * 2, partial(_read_cifar, "CIFAR100"))


def _fetch(read: Callable[[Path], object], data_root: Path, place: str) -> None:
    """Downloads into a folder of its own, verifies, and only then moves it to its place: no half-written files, no
    quarrel between two runs that start together."""
    where = data_root / place
    data_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_root, prefix=f".{Path(place).name}-") as folder:
        with _impatient_network(), contextlib.redirect_stdout(io.StringIO()):
            read(Path(folder))
        where.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty(where):  # still; another run may have been quicker
            os.replace(Path(folder) / place, where)


def _packed(where: Path) -> Path | None:
    """An archive that what belongs there comes in, where somebody has put one."""
    archives = [*sorted(where.glob("*.gz")), where.parent / ARCHIVES.get(where.name, "")]
    return next(filter(os.path.isfile, archives), None)


def _is_empty(where: Path) -> bool:
    """Neither a file nor a folder with something in it; one that may not be looked into counts as full."""
    try:
        return not os.path.isfile(where) and not (os.path.isdir(where) and any(where.iterdir()))
    except OSError:
        return False


@contextlib.contextmanager
def _impatient_network() -> Iterator[None]:
    """torchvision gives its connections no time limit, so behind a silent firewall it would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """The first sentence of what went wrong; torchvision's next one advises on its own arguments."""
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    return text.rstrip(".:") or type(error).__name__
