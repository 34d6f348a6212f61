"""Files that hold tensors and plain values: written whole or not at all, loaded as data and never as code."""

import errno
import io
import os
import pickle
import re
import stat
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from .errors import UserError

os.umask(UMASK := os.umask(0))  # there is no other way to ask
PAUSES = (0.05, 0.15, 0.3) if os.name == "nt" else ()  # seconds between attempts to replace a file
LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}  # what a file system cannot do


class _Watched:
    """A file that remembers its first failure to write: torch.save reports it as something else."""

    def __init__(self, file: IO[bytes]):
        self.file, self.failure = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls ``write`` with a binary file that replaces ``path`` only once everything is on the disk.

    Raises:
        UserError: where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = watched = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary, watched = file.name, _Watched(file)
            write(watched)
            sync(file)
        with suppress(OSError):  # a share may know no permissions, or belong to somebody else
            os.chmod(temporary, 0o666 & ~UMASK)  # it was made for its owner alone
        _replace(temporary, path)
        _sync_names(path.parent)
    except (OSError, RuntimeError) as error:
        failure = error if isinstance(error, OSError) else watched and watched.failure
        if failure is None:
            raise
        reason = failure.strerror or failure
        raise UserError(f"cannot write {path}: {reason}", "free some space or choose another folder") from None
    finally:
        if temporary:
            with suppress(OSError):  # gone, unless something failed
                os.unlink(temporary)


def sync(file: IO[bytes]) -> None:
    """Has the disk hold all that was written, where the file system can be asked to. Raises OSError where it fails."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in LACKING:
            raise


def _replace(temporary: str, path: Path) -> None:
    """``os.replace``, again for half a second on Windows, where nobody else may have the file open at that moment."""
    for pause in PAUSES:
        try:
            return os.replace(temporary, path)
        except PermissionError:  # a virus scanner, or whoever looks at the file
            time.sleep(pause)
    return os.replace(temporary, path)


def _sync_names(folder: Path) -> None:
    """Has the disk remember the names in a folder, where the system can."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Removes what a killed process was writing when it meant to write these files."""
    parts = {name: re.compile(re.escape(f".{name}.") + "[a-z0-9_]{8}") for name in names}  # as tempfile names them
    for entry in Path(folder).iterdir():
        if any(part.fullmatch(entry.name) for part in parts.values()):
            entry.unlink()


def check_writable(path: Path) -> None:
    """Raises UserError where a file could not be put at ``path``; makes nothing."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder", "name a file in it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {above} is no folder to write in", "choose another place")


def save(content: Mapping[str, Any], path: Path) -> None:
    """Writes a dictionary of tensors and plain values. Raises UserError as :func:`write_whole` does."""
    write_whole(path, lambda file: torch.save(dict(content), file))


def load(path: Path | str, what: str = "checkpoint") -> Any:
    """Reads a file of tensors and plain values onto the CPU.

    Args:
        path: the file.
        what: what the file is to the user, for messages ("teacher checkpoint").

    Raises:
        UserError: if it is missing, a folder, unreadable, damaged, or holds anything but data.
    """
    path = Path(path)
    if not stat.S_ISREG(kind_of(path, what)):
        raise UserError(f"{what} {path} is not a file", "name the .pth file itself")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer is one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{what} {path} cannot be read", "check its permissions") from None
    except Exception as error:  # torch raises a dozen types for a damaged file
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is not None and checksums_hold(path):
            raise UserError(
                f"{what} {path} holds code or whole modules, not just tensors and plain values: {_is(named[1])}",
                "save its state_dict() and give that; nothing in the file was run",
            ) from None
        raise UserError(
            f"{what} {path} is damaged or not a checkpoint ({type(error).__name__})", "copy it anew"
        ) from None
    if not checksums_hold(path):
        raise UserError(f"{what} {path} is damaged: a checksum in it does not hold", "copy it anew")
    return content


def kind_of(path: Path, what: str) -> int:
    """The mode of what is at ``path``. Raises UserError where nothing is, or it cannot be looked at."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"{what} {path} does not exist", "check the path") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}", "check the path") from None


def _is(name: str) -> str:
    """What a file that refers to that class or function is: a capital letter is a class, most likely a network's."""
    if name.rsplit(".", 1)[-1][:1].isupper():
        return f"an object of class {name}, such as a network saved whole by older code"
    return f"it calls {name}"


def checksums_hold(path: Path) -> bool:
    """Whether every record has the CRC-32 that torch.save wrote for it, which torch.load does not look at.

    True for files without any: those of the format before PyTorch 1.6, and those saved with CRCs turned off (all 0).
    """
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                with archive.open(record) as data:
                    while record.CRC and data.read(2**20):
                        pass
    except Exception:  # zipfile, too, has a dozen types for a damaged file
        return False
    return True


def append(file: io.FileIO, data: bytes) -> None:
    """All of it or nothing, with no buffer that could come out later. Raises OSError."""
    before, written = os.fstat(file.fileno()).st_size, 0
    try:
        while written < len(data):
            written += file.write(data[written:])
    except OSError:
        with suppress(OSError):
            file.truncate(before)
        raise
