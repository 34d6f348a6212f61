"""What a folder of images holds: splits, classes, image files. Links are followed, system files passed over.

Passed over at every depth: names that begin with a dot, such as ``._x.png`` and ``.ipynb_checkpoints``, and the folders
that systems and archives leave behind.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .folder_images import Samples
from .image_files import is_image
from .specs import DamagedData

TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev")  # the first with classes
SYSTEM = (  # of macOS, Windows, their file systems, and the disks of Synology and QNAP
    *("__macosx", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "lost+found"),
    *("found.000", "lost.dir", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns a folder or listing that the system refuses to read into DamagedData."""
    try:
        yield
    except OSError as error:
        raise DamagedData(f"cannot read {error.filename} ({error.strerror})", "check its permissions") from error


def is_ours(name: str) -> bool:
    """Whether a file or folder of that name is the user's own, not the system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM


def folders_in(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, and of links to such, unless these lead to one that it lies in.

    Raises DamagedData at a link to nothing.
    """
    around = {os.path.realpath(folder), *_above(folder)}
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if is_ours(entry.name) and _is_folder(entry, strict=True)]
    return sorted(entry.name for entry in found if not (entry.is_symlink() and os.path.realpath(entry.path) in around))


def splits_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders of these names, with "set" behind or not, in upper or lower case: in that order. Raises likewise."""
    if not folder.is_dir():
        return []

    def plain(name: str) -> str:
        return re.sub(r"[ _-]?set$", "", name.lower())

    with os.scandir(folder) as entries:
        there = sorted(entry.name for entry in entries if plain(entry.name) in names and _is_folder(entry, strict=True))
    return [folder / name for wanted in names for name in there if plain(name) == wanted]


def image_paths(folder: Path) -> list[str]:
    """Every image file in and below a folder, sorted by folder and name as torchvision's ImageFolder does."""
    return [path for path in _files_in(folder) if is_image(path)]


def passed_over(split: Path, classes: Sequence[str]) -> str:
    """How many of the user's files in these folders have no image's ending, and which endings; empty where none."""
    there = [path for name in classes if (split / name).is_dir() for path in _files_in(split / name)]
    endings = Counter(os.path.splitext(path)[1] or "none" for path in there if not is_image(path))
    shown = ", ".join(ending for ending, _ in endings.most_common(3)) + (", ..." if len(endings) > 3 else "")
    count = f"{endings.total():,} file{'s' * (endings.total() > 1)}"
    return f"passed over for their endings: {count} ({shown})" if endings else ""


def _files_in(folder: Path) -> list[str]:
    """Every file of the user's in and below a folder, in that order.

    A folder that links lead to twice is read once, and none that the given one lies in: links may go round in circles.
    """
    seen, waiting, found = _above(folder), [str(folder)], []
    while waiting:
        here = waiting.pop()
        if os.path.realpath(here) in seen:
            continue
        seen.add(os.path.realpath(here))
        with os.scandir(here) as entries:
            ours = sorted((entry for entry in entries if is_ours(entry.name)), key=lambda entry: entry.name)
        waiting += [entry.path for entry in ours if _is_folder(entry)]
        found += [entry.path for entry in ours if _is_file(entry)]
    return sorted(found, key=os.path.split)


def _above(folder: Path) -> set[str]:
    """The real paths of all folders that it lies in, by its name and in truth."""
    names = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
    return {os.path.realpath(parent) for name in names for parent in name.parents}


def _is_folder(entry: os.DirEntry, strict: bool = False) -> bool:
    """Or a link to one. Raises DamagedData, where ``strict``, at a link to nothing."""
    if not entry.is_symlink():
        return entry.is_dir()
    if strict and not os.path.exists(entry.path):
        what = f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there"
        raise DamagedData(what, "put that in place, or remove the link")
    return os.path.isdir(entry.path)


def _is_file(entry: os.DirEntry) -> bool:
    """Or a link to one, or to nothing: that is for its reader to name."""
    return entry.is_file() if not entry.is_symlink() else os.path.isfile(entry.path) or not os.path.exists(entry.path)


def samples_of(split: Path, classes: Sequence[str]) -> Samples:
    """Path and class index of every image below the class folders that are there, in order of class and path."""
    there = [(split / name, label) for label, name in enumerate(classes) if (split / name).is_dir()]
    return [(path, label) for folder, label in there for path in image_paths(folder)]


def without_images(samples: Samples, classes: Sequence[str]) -> list[str]:
    """The classes that none of the samples is of."""
    labels = {label for _, label in samples}
    return [name for label, name in enumerate(classes) if label not in labels]
