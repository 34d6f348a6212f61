"""The data set ``imagefolder:PATH``: any folder with a folder a class, as people have it.

PATH/train/<class>/*, PATH/val/<class>/*        or training/; or valid/, validation/, test/, testing/, eval/, dev/
PATH/<class>/*                                  test images alone

Classes are numbered in the order of their names. One without images, or absent, in training or test images keeps its
number; so a split holds what there is, and the log says what there is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .class_folders import (
    TEST,
    TRAIN,
    folders_in,
    image_paths,
    passed_over,
    readable,
    samples_of,
    splits_in,
    without_images,
)
from .folder_images import FolderImages, Samples, folder_images
from .image_files import EXTENSIONS
from .specs import DamagedData, DatasetSpec, Images, MissingData, Size

ENDINGS = " ".join(EXTENSIONS)
NAMED = 3  # classes at most in a line of the log


@readable()
def imagefolder_spec(
    path: Path | str,
    img_size: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_classes: int | None = None,
    workers: int | None = None,
) -> DatasetSpec:
    """That data set; what is not there is no error before it is loaded, if ``num_classes`` is given.

    Args:
        path: the folder.
        img_size: height and width of what comes out.
        mean, std: a value a channel; one of them for images of one channel.
        num_classes: how many classes there must be; by default as many as are found.
        workers: as of FolderImages.

    Raises:
        UserError: where there is neither a split nor a class count, or no class, or no image, or where the classes are
            not as many as said or training and test images have none in common. Loading an absent split raises
            MissingData.
    """
    path, shape = Path(path), (len(mean), *img_size)
    splits = _find(path, num_classes)
    there = [split for split in splits.values() if split.folder]
    if there and not any(image_paths(split.folder / name) for split in there for name in split.names):
        raise UserError(f"there is no image in {path}{_but(there[0])}", f"put some into its class folders: {ENDINGS}")
    classes = _numbered(path, splits, num_classes) if there else ()

    @readable()
    def load(data_root: Path, train: bool, download: bool) -> Images:
        split = splits[train]
        if split.folder is None:
            raise MissingData(split.note, f"put {'train' if train else 'val'}/<class>/ into {path}")
        samples = samples_of(split.folder, classes)
        if not samples:
            raise MissingData(f"no image in {split.folder}{_but(split)}", f"put images there: {ENDINGS}")
        images = folder_images(samples, shape, train, workers)
        images.remarks = _remarks("training" if train else "test", split, samples, classes, images)
        return images

    described = (f"imagefolder:{path}", len(classes) or num_classes, img_size, tuple(mean), tuple(std))
    return DatasetSpec(*described, flip=True, load=load, class_names=tuple(classes))


@dataclass(frozen=True)
class Split:
    """Training or test images: their folder, None where there is none; its class folders; why, or how it was found."""

    folder: Path | None
    names: list[str]
    note: str = ""


def _find(path: Path, num_classes: int | None) -> dict[bool, Split]:
    """Training (True) and test images. Raises UserError where there are none, unless the class count is given."""
    candidates = {True: splits_in(path, TRAIN), False: splits_in(path, TEST)}
    if _are_classes(path, [*candidates[True], *candidates[False]]):
        candidates = {True: [], False: []}
    splits = {train: _first_with_classes(path, train, folders) for train, folders in candidates.items()}
    if not any(candidates.values()):
        splits[False] = _without_splits(path, num_classes)
    elif num_classes is None and not any(split.folder for split in splits.values()):
        raise DamagedData(splits[bool(candidates[True])].note, "sort its images into one folder a class")
    return splits


def _are_classes(path: Path, named: list[Path]) -> bool:
    """Whether folders named like splits are classes among others, as "train" is beside "bus": images lie right in all.

    Among more others, that is: one folder of another name beside unsorted splits makes none.
    """
    folders = [path / name for name in folders_in(path)] if named else []
    return len(folders) > 2 * len(named) and all(not folders_in(each) and image_paths(each) for each in folders)


def _first_with_classes(path: Path, train: bool, folders: list[Path]) -> Split:
    names = {folder: folders_in(folder) for folder in folders}
    chosen = next((folder for folder in folders if names[folder]), None)
    if chosen is None:
        lacking = f"no images in {path / ('train' if train else 'val')}"
        return Split(None, [], f"{folders[0]} holds no class folders" if folders else lacking)
    others = [f"{folder.name}/" for folder in folders if folder != chosen]
    return Split(chosen, names[chosen], f" ({', '.join(others)} not read)" if others else "")


def _without_splits(path: Path, num_classes: int | None) -> Split:
    """The folder's folders, taken for the classes of test images where they can be that. Raises as _find does."""
    folders = folders_in(path) if path.is_dir() else []
    inside = [path / name for name in folders if splits_in(path / name, (*TRAIN, *TEST))]
    what, remedy = f"{path} holds neither train/ nor val/", "name a folder that does, or give --num_classes"
    if not path.is_dir():
        what = f"{path} is no folder" if path.exists() else f"there is no folder {path}"
        remedy = "say where it is now with --dataset imagefolder:PATH, at --resume as well, or give --num_classes"
        remedy = "name the folder that it is in, or unpack it" if path.exists() else remedy
    elif inside:
        what, remedy = f"{what}, but {inside[0]} does", f"give --dataset imagefolder:{inside[0]}"
    elif num_classes != len(folders) > 1 and _alike(path, folders):
        what = f"the folders of {path} have the same folders in them, and are none of train/ and val/"
        remedy = f"name one, as --dataset imagefolder:{path / folders[0]}, or link them as train/ and val/"
    elif len(folders) > 1 and any(image_paths(path / name) for name in folders):
        if num_classes in (None, len(folders)):
            return Split(path, folders, " (no train/ or val/ there: its folders are taken for classes of test images)")
        what = f"{what}, and its {len(folders)} folders are not {num_classes} classes"
    elif others := passed_over(path, folders):
        what = f"{what}, nor images; {others}"
    if num_classes is None:
        raise UserError(what, remedy)
    return Split(None, [], what)


def _alike(path: Path, folders: list[str]) -> bool:
    """Whether they look like splits of whatever names, fold1/ and fold2/, with the classes in each."""
    inside = {tuple(folders_in(path / name)) for name in folders}
    return len(inside) == 1 and len(inside.pop()) > 1


def _numbered(path: Path, splits: dict[bool, Split], num_classes: int | None) -> list[str]:
    """The class names in the order of their indices.

    All there are; only those of the training images where these are as many as said. Raises DamagedData where they are
    not as many as said, or the splits have nothing to do with each other.
    """
    train, test = splits[True], splits[False]
    if train.folder and test.folder and not set(train.names) & set(test.names):
        what = f"{train.folder} and {test.folder} have no class in common ({train.names[0]!r}, {test.names[0]!r})"
        raise DamagedData(what, "give both the same class folders")
    classes = sorted({*train.names, *test.names})
    if num_classes == len(train.names):
        return train.names
    if num_classes not in (None, len(classes)):
        lacking = "add a folder, an empty one will do, for each class that has no images"
        remedy = lacking if num_classes > len(classes) else "remove the folders that are no class"
        what = f"--num_classes says {num_classes}, and {path} has {len(classes)} class folders"
        raise DamagedData(what, f"leave the flag out, or {remedy}")
    return classes


def _but(split: Split) -> str:
    """What is there in place of images."""
    others = passed_over(split.folder, split.names)
    return f"; {others}" if others else ""


def _remarks(kind: str, split: Split, samples: Samples, classes: Sequence[str], images: Images) -> tuple[str, ...]:
    """For the log: where the images are from, how they are read, and of which classes there are none."""
    how = "in memory"
    if isinstance(images, FolderImages):
        how = f"read by {images.workers} thread{'s' * (images.workers > 1)}"
    return (
        f"{kind} set: {split.folder}, {len(samples):,} images, {how}{split.note}",
        *([f"{kind} set: {others}"] if (others := passed_over(split.folder, classes)) else []),
        *_missing(f"no {kind} image of", without_images(samples, classes)),
        *_missing("left out, for it is not in train/:", sorted(set(split.names).difference(classes))),
    )


def _missing(what: str, classes: Sequence[str]) -> list[str]:
    """One line that names some of these classes, or none where there are none."""
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return [f"{what} {', '.join(classes[:NAMED])}{more}"] if classes else []
