"""The data set ``imagefolder:PATH``: any folder with a folder a class, as people have it.

PATH/train/<class>/*, PATH/val/<class>/*        or training/; or valid/, validation/, test/, testing/, dev/
PATH/<class>/*                                  test images alone

Classes are numbered in the order of their names. One without images, or absent, in training or test images keeps its
number; so a split holds what there is, and the log says what there is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .class_folders import TEST, TRAIN, folders_in, image_paths, readable, samples_of, splits_in, without_images
from .folder_images import FolderImages, folder_images
from .image_files import EXTENSIONS
from .specs import DamagedData, DatasetSpec, Images, MissingData

NAMED = 3  # classes at most in a line of the log


@readable()
def imagefolder_spec(
    path: Path | str,
    img_size: tuple[int, int],
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
    found = _find(path, num_classes)
    classes = _numbered(path, found, num_classes) if found.names else ()

    @readable()
    def load(data_root: Path, train: bool, download: bool) -> Images:
        split = found.splits[train]
        if split is None:
            raise MissingData(found.absent[train], f"put {'train' if train else 'val'}/<class>/ into {path}")
        samples = samples_of(split, classes)
        if not samples:
            raise MissingData(f"no image in {split}", f"put images there: {' '.join(EXTENSIONS)}")
        images = folder_images(samples, shape, train, workers)
        how = f"read by {images.workers} threads" if isinstance(images, FolderImages) else "in memory"
        images.remarks = (
            f"{'training' if train else 'test'} set: {split}, {len(samples):,} images, {how}{found.notes[train]}",
            *_missing(f"no {'training' if train else 'test'} image of", without_images(samples, classes)),
            *_missing("left out, for it is not in train/:", sorted(set(found.names[split]).difference(classes))),
        )
        return images

    described = (f"imagefolder:{path}", len(classes) or num_classes, img_size[0], tuple(mean), tuple(std))
    return DatasetSpec(*described, flip=True, load=load, class_names=tuple(classes))


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        splits: folder of the training images (True) and of the test images (False).
        absent: why a split is None.
        names: the class folders of each split.
        notes: how a split was found, for the log.
    """

    splits: dict[bool, Path | None]
    absent: dict[bool, str]
    names: dict[Path, list[str]]
    notes: dict[bool, str] = field(default_factory=lambda: {True: "", False: ""})


def _find(path: Path, num_classes: int | None) -> Found:
    """The splits that have class folders. Raises UserError where there is none, unless the class count is given."""
    candidates = {True: splits_in(path, TRAIN), False: splits_in(path, TEST)}
    names = {split: folders_in(split) for splits in candidates.values() for split in splits}
    found = Found({}, {}, {})
    for train, splits in candidates.items():
        found.splits[train] = chosen = next((split for split in splits if names[split]), None)
        empty = f"{splits[0]} holds no class folders" if splits else ""
        found.absent[train] = empty or f"no images in {path / ('train' if train else 'val')}"
        others = [f"{split.name}/" for split in splits if split != chosen]
        found.notes[train] = f" ({', '.join(others)} not read)" if others else ""
    found.names = {split: names[split] for split in found.splits.values() if split}
    if names and not found.names and num_classes is None:
        raise DamagedData(f"{next(iter(names))} holds no class folders", "sort its images into one folder a class")
    if not names:
        _find_without_splits(path, found, num_classes)
    if found.names and not any(image_paths(split / name) for split, there in found.names.items() for name in there):
        raise UserError(f"there is no image in {path}", f"put some into its class folders: {' '.join(EXTENSIONS)}")
    return found


def _find_without_splits(path: Path, found: Found, num_classes: int | None) -> None:
    """Takes the folder's folders for the classes of test images, where they can be that."""
    folders = folders_in(path) if path.is_dir() else []
    what = f"{path} holds neither train/ nor val/" if path.is_dir() else f"there is no folder {path}"
    remedy = "name a folder that holds train/ or val/, or give --num_classes"
    inside = [name for name in folders if splits_in(path / name, (*TRAIN, *TEST))]
    if inside:
        what, remedy = f"{what}, but {path / inside[0]} does", f"give --dataset imagefolder:{path / inside[0]}"
    elif len(folders) > 1 and num_classes in (None, len(folders)) and any(image_paths(path / name) for name in folders):
        found.splits[False], found.names = path, {path: folders}
        found.notes[False] = " (no train/ or val/ there: its folders are taken for the classes of test images)"
        return
    if num_classes is None:
        raise UserError(what, remedy)
    found.absent[False] = what


def _numbered(path: Path, found: Found, num_classes: int | None) -> list[str]:
    """The class names in the order of their indices.

    All there are; only those of the training images where these are as many as said. Raises DamagedData where they are
    not as many as said, or the splits have nothing to do with each other.
    """
    train, test = (found.names.get(split, []) for split in (found.splits[True], found.splits[False]))
    if train and test and not set(train) & set(test):
        what = f"{found.splits[True]} and {found.splits[False]} have no class in common ({train[0]!r}, {test[0]!r})"
        raise DamagedData(what, "give both the same class folders")
    classes = sorted({*train, *test})
    if num_classes == len(train):
        return train
    if num_classes not in (None, len(classes)):
        lacking = "add a folder, an empty one will do, for each class that has no images"
        remedy = lacking if num_classes > len(classes) else "remove the folders that are no class"
        what = f"--num_classes says {num_classes}, and {path} has {len(classes)} class folders"
        raise DamagedData(what, f"leave the flag out, or {remedy}")
    return classes


def _missing(what: str, classes: Sequence[str]) -> list[str]:
    """One line that names some of these classes, or none where there are none."""
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return [f"{what} {', '.join(classes[:NAMED])}{more}"] if classes else []
