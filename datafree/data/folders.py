"""Published data sets that are folders of image files: Tiny-ImageNet and ImageNet.

Class indices follow the sorted names of the class folders, the same in train and val. What is there must be complete.
Nothing here is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

from .class_folders import folders_in, readable, samples_of, without_images
from .folder_images import FolderImages, Samples, folder_images
from .specs import DamagedData, Images, MissingData, TensorImages

UNPACK = "unpack the data set again"
SORT = "sort its images into one folder a class"


@readable()
def load_tiny_imagenet(data_root: Path, train: bool, download: bool, workers: int | None = None) -> TensorImages:
    """Tiny-ImageNet at 64 px from ``<data_root>/tiny-imagenet-200`` (or ``tiny_imagenet``), about 1.2 GB in memory.

    Reads train/<wnid>/**/*.JPEG, and val/<wnid>/**/*.JPEG or the original val/images/*.JPEG with val_annotations.txt.
    Raises MissingData where the split is absent, DamagedData where its classes are not 200, or an image is unreadable
    or not 64 pixels high and wide.
    """
    folders = [Path(data_root) / name for name in ("tiny-imagenet-200", "tiny_imagenet")]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    split, val = _require_split(folder, train), folder / "val"
    names = _classes_of_splits(folder)
    annotated = _annotations(val) if names.get(val) == ["images"] else []  # the original layout
    if annotated:
        names[val] = sorted({wnid for _, wnid in annotated})
    classes = _the_same(folder, names, expected=200)
    if annotated and not train:
        samples = [(str(path), classes.index(wnid)) for path, wnid in annotated]
    else:
        samples = _complete(split, classes)
    images = FolderImages(samples, (3, 64, 64), workers)
    odd = images.first_of_another_size()
    if odd is not None:
        raise DamagedData(f"the image {odd} is not 64x64 pixels", UNPACK)
    return images.in_memory()


@readable()
def load_imagenet(data_root: Path, train: bool, download: bool, workers: int | None = None) -> Images:
    """ILSVRC-2012 at 224 px from ``<data_root>/imagenet/{train,val}/<wnid>/``.

    Raises MissingData where the split is absent, DamagedData where its classes are not 1,000 or one holds no image.
    """
    folder = Path(data_root) / "imagenet"
    split = _require_split(folder, train)
    classes = _the_same(folder, _classes_of_splits(folder), expected=1000)
    return folder_images(_complete(split, classes), (3, 224, 224), train, workers)


def _require_split(folder: Path, train: bool) -> Path:
    """The folder of that split. Raises MissingData where it is absent, DamagedData where only the other is there."""
    split = folder / ("train" if train else "val")
    if not split.is_dir():
        kind = DamagedData if folder.is_dir() and any(folder.iterdir()) else MissingData
        raise kind(f"no images in {split}", f"put {split.name}/<class>/ there, or name another place with --data_root")
    return split


def _classes_of_splits(folder: Path) -> dict[Path, list[str]]:
    """The class folders of train/ and val/, where those are there."""
    return {split: folders_in(split) for split in (folder / "train", folder / "val") if split.is_dir()}


def _the_same(folder: Path, names: dict[Path, list[str]], expected: int) -> list[str]:
    """The one list of class names. Raises DamagedData where splits differ, have none, or not as many as expected."""
    classes, *others = names.values()
    for split, found in names.items():
        if not found:
            raise DamagedData(f"{split} holds no class folders", SORT)
    for found in others:
        if found != classes:
            odd = min(set(found).symmetric_difference(classes))
            raise DamagedData(
                f"the class {odd!r} is in only one of {folder}/train and {folder}/val",
                f"give both the same classes (now {len(classes)} and {len(found)})",
            )
    if len(classes) != expected:
        raise DamagedData(f"{folder} has {len(classes)} classes instead of {expected}", UNPACK)
    return classes


def _complete(split: Path, classes: Sequence[str]) -> Samples:
    """Every image of a published set. Raises DamagedData at a class without any."""
    samples = samples_of(split, classes)
    for name in without_images(samples, classes):
        raise DamagedData(f"no images in {split / name}", UNPACK)
    return samples


def _annotations(val: Path) -> list[tuple[Path, str]]:
    """Path and wnid of each image of Tiny-ImageNet's original val, in the order of val_annotations.txt."""
    listing = val / "val_annotations.txt"
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    fields = [line.split("\t") for line in lines if line.strip()]
    if not fields or any(len(row) < 2 for row in fields):
        raise DamagedData(f"no list of images and classes in {listing}", UNPACK)
    return [(val / "images" / row[0], row[1]) for row in fields]
