"""Data sets that are folders of image files: Tiny-ImageNet, ImageNet, and any folder with train/ and val/.

Class indices follow the sorted names of the class folders, the same in train and val. Nothing here is downloaded.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader, is_image_file

from ..errors import UserError
from .specs import UNREADABLE, DamagedData, DatasetSpec, FolderImages, MissingData, TensorImages

Samples = list[tuple[str, int]]  # path, class index
UNPACK = "unpack the data set again"


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns a folder or listing that the system refuses to read into DamagedData."""
    try:
        yield
    except OSError as error:
        raise DamagedData(f"cannot read {error.filename} ({error.strerror})", "check its permissions") from error


@_readable()
def load_tiny_imagenet(data_root: Path, train: bool, download: bool) -> TensorImages:
    """Tiny-ImageNet at 64 px from ``<data_root>/tiny-imagenet-200`` (or ``tiny_imagenet``), about 1.2 GB in memory.

    Reads train/<wnid>/**/*.JPEG, and val/<wnid>/**/*.JPEG or the original val/images/*.JPEG with val_annotations.txt.
    Raises MissingData where the split is absent, DamagedData where its classes are not 200 or an image is unreadable.
    """
    folders = [Path(data_root) / name for name in ("tiny-imagenet-200", "tiny_imagenet")]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    split, val = _require_split(folder, train), folder / "val"
    names = _class_folders(folder)
    annotated = _annotations(val) if names.get(val) == ["images"] else []  # the original layout
    if annotated:
        names[val] = sorted({wnid for _, wnid in annotated})
    classes = _agreed(folder, names, expected=200)
    if annotated and not train:
        samples = [(str(path), classes.index(wnid)) for path, wnid in annotated]
    else:
        samples = _scan(split, classes)
    return _decode(samples, 64)


@_readable()
def load_imagenet(data_root: Path, train: bool, download: bool) -> FolderImages:
    """ILSVRC-2012 at 224 px from ``<data_root>/imagenet/{train,val}/<wnid>/``.

    Raises MissingData where the split is absent, DamagedData where its classes are not 1,000 or one holds no image.
    """
    folder = Path(data_root) / "imagenet"
    split = _require_split(folder, train)
    classes = _agreed(folder, _class_folders(folder), expected=1000)
    return FolderImages(_scan(split, classes), 224)


@_readable()
def imagefolder_spec(
    path: Path | str,
    img_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    num_classes: int | None = None,
) -> DatasetSpec:
    """The data set ``imagefolder:PATH``: PATH/train/<class>/ and PATH/val/<class>/, one of which may be absent.

    With ``num_classes`` given, both may: distillation needs no more than that.

    Raises UserError where there is neither and no class count, or no class, or no image, or where the classes of the
    two differ or are not as many as said; loading an absent split raises MissingData.
    """
    path = Path(path)
    splits = [path / name for name in ("train", "val") if (path / name).is_dir()]
    if not splits and num_classes is None:
        raise UserError(f"{path} holds neither train/ nor val/", "name a folder that does, or give --num_classes")
    classes = _agreed(path, _class_folders(path), num_classes) if splits else range(num_classes)
    if splits and not any(is_image_file(file.name) for file in path.rglob("*")):
        raise UserError(f"there is no image in {path}", "put images into its train/<class>/ and val/<class>/")

    @_readable()
    def load(data_root: Path, train: bool, download: bool) -> FolderImages:
        split = path / ("train" if train else "val")
        if not split.is_dir():
            raise MissingData(f"no images in {split}", f"put {split.name}/<class>/ there")
        return FolderImages(_scan(split, classes), img_size)

    names = tuple(classes) if splits else ()
    described = (f"imagefolder:{path}", len(classes), img_size, tuple(mean), tuple(std))
    return DatasetSpec(*described, flip=True, load=load, class_names=names)


def _require_split(folder: Path, train: bool) -> Path:
    """The folder of that split. Raises MissingData where it is absent, DamagedData where only the other is there."""
    split = folder / ("train" if train else "val")
    if not split.is_dir():
        kind = DamagedData if folder.is_dir() and any(folder.iterdir()) else MissingData
        raise kind(f"no images in {split}", f"put {split.name}/<class>/ there, or name another place with --data_root")
    return split


def _class_folders(folder: Path) -> dict[Path, list[str]]:
    """Of train/ and val/, those that are there, with the sorted names of their class folders, hidden ones left out."""
    splits = [split for split in (folder / "train", folder / "val") if split.is_dir()]
    return {
        split: sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        for split in splits
    }


def _agreed(folder: Path, names: dict[Path, list[str]], expected: int | None = None) -> list[str]:
    """The one list of class names. Raises DamagedData where splits differ, have none, or not as many as expected."""
    for split, found in names.items():
        if not found:
            raise DamagedData(f"{split} holds no class folders", "sort its images into one folder a class")
    classes, *others = names.values()
    for found in others:
        if found != classes:
            odd = min(set(found).symmetric_difference(classes))
            raise DamagedData(
                f"the class {odd!r} is in only one of {folder}/train and {folder}/val",
                f"give both the same classes (now {len(classes)} and {len(found)})",
            )
    if expected is not None and len(classes) != expected:
        raise DamagedData(f"{folder} has {len(classes)} classes instead of {expected}", UNPACK)
    return classes


def _scan(split: Path, classes: list[str]) -> Samples:
    """Every image below the class folders, in order of class and path. Raises DamagedData at a class without any."""
    index = {name: i for i, name in enumerate(classes)}
    samples = ImageFolder.make_dataset(str(split), index, is_valid_file=is_image_file, allow_empty=True)
    empty = set(range(len(classes))).difference(label for _, label in samples)
    if empty:
        raise DamagedData(f"no images in {split / classes[min(empty)]}", "put them there, or remove the class folder")
    return samples


def _annotations(val: Path) -> list[tuple[Path, str]]:
    """Path and wnid of each image of Tiny-ImageNet's original val, in the order of val_annotations.txt."""
    listing = val / "val_annotations.txt"
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    fields = [line.split("\t") for line in lines if line.strip()]
    if not fields or any(len(row) < 2 for row in fields):
        raise DamagedData(f"no list of images and classes in {listing}", UNPACK)
    return [(val / "images" / row[0], row[1]) for row in fields]


def _decode(samples: Samples, img_size: int) -> TensorImages:
    """All images in memory. Raises DamagedData at one that is unreadable or not ``img_size`` pixels high and wide."""
    images = np.empty((len(samples), 3, img_size, img_size), dtype=np.uint8)

    def decode(i: int) -> None:
        path = samples[i][0]
        try:
            pixels = np.asarray(default_loader(path))  # (H, W, 3)
        except UNREADABLE as error:
            raise DamagedData(f"cannot read the image {path} ({type(error).__name__})", UNPACK) from error
        if pixels.shape != (img_size, img_size, 3):
            raise DamagedData(f"the image {path} is not {img_size}x{img_size} pixels", UNPACK)
        images[i] = pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor(8) as readers:  # PIL decodes outside the interpreter lock
        for _ in readers.map(decode, range(len(samples)), chunksize=256):
            pass
    return TensorImages(torch.from_numpy(images), torch.tensor([label for _, label in samples]))
