"""Data sets that torchvision knows how to fetch and verify, where it would put them: ``data_root`` is its ``root``."""

import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from .specs import DamagedData, MissingData, TensorImages

PATIENCE = 30  # seconds without an answer after which a download counts as failed; chosen by us


@dataclass(frozen=True)
class _Source:
    """Where torchvision keeps a split, and how it reads one: ``(root, train, download) -> (images, labels)``."""

    name: str
    places: dict[bool, str]  # train or not -> file or folder
    read: Callable[[Path, bool, bool], tuple[Tensor, Tensor]]


def load_mnist(data_root: Path, train: bool, download: bool) -> TensorImages:
    """MNIST in ``<data_root>/MNIST/raw``; black margins make it 32x32 as in LeCun et al. (1998), grey in 3 channels.

    Raises MissingData or DamagedData, see ``_load``.
    """
    return _load(_Source("mnist", dict.fromkeys((True, False), "MNIST/raw"), _read_mnist), data_root, train, download)


def load_svhn(data_root: Path, train: bool, download: bool) -> TensorImages:
    """SVHN's cropped digits in ``<data_root>/{train,test}_32x32.mat``; label 0 is the digit 0.

    Raises MissingData or DamagedData, see ``_load``.
    """
    places = {True: "train_32x32.mat", False: "test_32x32.mat"}
    return _load(_Source("svhn", places, _read_svhn), data_root, train, download)


def load_cifar10(data_root: Path, train: bool, download: bool) -> TensorImages:
    """CIFAR-10's python version in ``<data_root>/cifar-10-batches-py``.

    Raises MissingData or DamagedData, see ``_load``.
    """
    places = dict.fromkeys((True, False), datasets.CIFAR10.base_folder)
    return _load(_Source("cifar10", places, partial(_read_cifar, datasets.CIFAR10)), data_root, train, download)


def load_cifar100(data_root: Path, train: bool, download: bool) -> TensorImages:
    """CIFAR-100's python version, fine labels, in ``<data_root>/cifar-100-python``.

    Raises MissingData or DamagedData, see ``_load``.
    """
    places = dict.fromkeys((True, False), datasets.CIFAR100.base_folder)
    return _load(_Source("cifar100", places, partial(_read_cifar, datasets.CIFAR100)), data_root, train, download)


def _read_mnist(root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    mnist = datasets.MNIST(root, train, download=download)
    images = F.pad(mnist.data, (2, 2, 2, 2)).unsqueeze(1)  # (N, 28, 28) -> (N, 1, 32, 32)
    return images.repeat(1, 3, 1, 1), mnist.targets


def _read_svhn(root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    svhn = datasets.SVHN(root, "train" if train else "test", download=download)
    return torch.from_numpy(np.ascontiguousarray(svhn.data)), torch.from_numpy(svhn.labels)


def _read_cifar(kind: type[datasets.CIFAR10], root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    cifar = kind(root, train, download=download)
    images = np.ascontiguousarray(cifar.data.transpose(0, 3, 1, 2))  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor(cifar.targets)


def _load(source: _Source, data_root: Path, train: bool, download: bool) -> TensorImages:
    """The split from disk; where there is none, from the network if ``download`` allows it.

    torchvision checks the published checksums of CIFAR and SVHN before it reads them, so a CIFAR pickle that someone
    changed is never unpickled. What is on disk is never written over.

    Raises MissingData where there is nothing on disk and nothing could be downloaded, DamagedData where what is on disk
    is incomplete, altered or unreadable.
    """
    data_root = Path(data_root)
    where = data_root / source.places[train]
    if _is_empty(where):
        _fetch(source, data_root, where, train, download)
    try:
        images, labels = source.read(data_root, train, False)
        return TensorImages(images, labels.long())
    except MemoryError:
        raise
    except Exception as error:  # torchvision, pickle, numpy and scipy have a dozen ways to say that a file is bad
        raise DamagedData(
            f"the {source.name} data in {where} is incomplete or damaged ({_reason(error)})",
            "remove it, then download it again or put a good copy there",
        ) from error


def _fetch(source: _Source, data_root: Path, where: Path, train: bool, download: bool) -> None:
    """Downloads into a folder of its own, verifies, and only then moves the split to ``where``: no half-written files,
    no quarrel between two runs that start together. Raises MissingData where it is not allowed or fails.
    """
    remedy = f"put the data there, or name the folder that holds {source.places[train]} with --data_root"
    if not download:
        raise MissingData(f"no {source.name} images in {where}", remedy)
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_root, prefix=f".{source.name}-") as folder:
            with _impatient_network(), contextlib.redirect_stdout(io.StringIO()):
                source.read(Path(folder), train, True)
            where.parent.mkdir(parents=True, exist_ok=True)
            if _is_empty(where):  # still; another run may have been quicker
                os.replace(Path(folder) / source.places[train], where)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:  # network, disk or checksum
        raise MissingData(
            f"no {source.name} images in {where}, and downloading them failed ({_reason(error)})", remedy
        ) from error


def _is_empty(where: Path) -> bool:
    """Neither a file nor a folder with something in it; one that may not be looked into counts as full."""
    return not os.path.isfile(where) and not (os.path.isdir(where) and _holds_something(where))


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return True


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
