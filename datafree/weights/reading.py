"""A file or folder of any common format, read as data and never as code.

file:    safetensors;  torch.save (zip or the format before);  numpy.savez;  a pickle of tensors or arrays
folder:  model.safetensors, pytorch_model.bin, their parts by *.index.json, or the one such file in it

The format is told by the bytes; the name of the file does not matter. Content that is not tensors is read past.
"""

import io
import json
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch

from ..errors import UserError, is_out_of_memory
from ..files import checksums_hold, kind_of
from . import kinds, pickles

IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # as Hugging Face names them; parts: these + ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".th", ".ckpt", ".npz", ".pkl")
PICKLE = re.compile(  # protocols 2 to 5; of the older ones a dictionary, or a class that weights are made of
    rb"\x80[\2-\5]|\(dp\d|\}q.|c(collections|torch|numpy|builtins|__builtin__|copy_reg)[\w.]*\n"
)
LEGACY = b"\x8a\x0a" + pickles.MAGIC.to_bytes(10, "little") + b"."


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        value: dictionaries, lists, tensors, numbers, words; :class:`pickles.StandIn` for whatever else.
        strange: of the classes and functions that the file asks for and does not get, the names.
    """

    value: Any
    strange: list[str] = field(default_factory=list)


def read(path: Path | str, what: str) -> Content:
    """Reads a file, or a folder of the Hugging Face form, onto the CPU.

    Args:
        path: the file or folder.
        what: what it is to the user, for messages ("teacher checkpoint").

    Raises:
        UserError: if it is missing, unreadable, damaged, or of a kind that is not read: then with its kind.
    """
    if re.match(r"\w+:/", str(path)):
        raise UserError(f"{what} {path} is an address, not a file", "download it, and name the file")
    path = Path(path).expanduser()
    mode = kind_of(path, what)
    if stat.S_ISDIR(mode):
        path = _in_folder(path, what)
        mode = kind_of(path, what)
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} {path} is not a file", "name the file that holds the weights")
    if path.name.endswith(".index.json"):
        return _parts(path, what)
    return _file(path, what)


def _in_folder(folder: Path, what: str) -> Path:
    """The file in a folder, or the index of several."""
    with _reported(folder, what):
        names = sorted(entry.name for entry in folder.iterdir())
    for name in IN_FOLDERS:
        for known in (name, f"{name}.index.json"):
            if known in names:
                return folder / known
    if "data.pkl" in names:
        remedy = "download the file itself (some browsers unpack it), or pack it again: zip -0 -r NEW.pth FOLDER"
        raise UserError(f"{what} {folder} is not a file but a checkpoint that was unpacked", remedy)
    found = [name for name in names if name.endswith(".index.json")]
    found = found or [name for name in names if name.endswith(SUFFIXES)]
    if len(found) == 1:
        return folder / found[0]
    if found:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise UserError(f"{what} {folder} is not a file but a folder of several: {shown}", "name one of them")
    snapshots = sorted((folder / "snapshots").iterdir()) if "snapshots" in names else []
    if len(snapshots) == 1:  # of Hugging Face's cache
        return _in_folder(snapshots[0], what)
    if any(name.endswith(".distcp") for name in names):
        remedy = "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        raise UserError(f"{what} {folder} is a distributed checkpoint", remedy)
    if "saved_model.pb" in names or "checkpoint" in names:
        raise UserError(f"{what} {folder} is a TensorFlow model", kinds.FOREIGN)
    remedy = f"name the file; looked for: {', '.join(IN_FOLDERS)}, or a single one of {' '.join(SUFFIXES)}"
    raise UserError(f"{what} {folder} is not a file but a folder without weights in it", remedy)


def _parts(index: Path, what: str) -> Content:
    """The files that an index names, as one: {"weight_map": {name of a tensor: file beside the index}}."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = list(dict.fromkeys(places.values()))
        beside = all(file and Path(file).name == file for file in files)
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        raise UserError(f"{what} {index} is no index of weights", "download it again") from None
    if not files or not beside:
        raise UserError(f"{what} {index} names files that are not beside it", "download the folder again")
    whole: dict[str, Any] = {}
    strange: list[str] = []
    for file in files:
        part = _file(index.parent / file, what) if (index.parent / file).is_file() else None
        if part is None:
            raise UserError(f"{what} {index.parent} lacks its part {file}", "download or copy that file, too")
        if isinstance(part.value, dict):
            whole |= part.value
        strange += part.strange
    for name, file in places.items():
        if name not in whole:
            raise UserError(f"{what} {index.parent / file} lacks {name}, which {index.name} says it has", kinds.AGAIN)
    return Content(whole, strange)


def _file(path: Path, what: str) -> Content:
    with _reported(path, what), open(path, "rb") as file:
        head = file.read(kinds.HEAD)
        if _is_safetensors(head):
            return Content(safetensors.torch.load_file(path))
        reader = _reader(head)
        known = kinds.named(file, path) if reader in (None, pickles.read_zip) else None
        if known:
            raise UserError(f"{what} {path} is {known[0]}", known[1])
        if reader is None:
            begins = head[:8].hex(" ")
            raise UserError(
                f"{what} {path} is damaged, or not a checkpoint: it begins with the bytes {begins}",
                "copy it anew if it is one; read are .safetensors and what torch.save and numpy.savez write",
            )
        file.seek(0)
        if reader is pickles.read_zip and _is_npz(file):
            return Content(_npz(file))
        content = _read(_unpacked(file) if reader is pickles.read_zip else file, reader)
        if not checksums_hold(path):
            raise UserError(f"{what} {path} is damaged: a checksum in it does not hold", kinds.AGAIN)
    return content


@contextmanager
def _reported(path: Path, what: str) -> Iterator[None]:
    """Within, whatever a damaged file brings about becomes a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer is one line
            yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{what} {path} cannot be read", "check its permissions") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise UserError(f"{what} {path} is damaged ({reason})", kinds.AGAIN) from None


def _is_safetensors(head: bytes) -> bool:
    """Whether it begins as those do: the length of a header in JSON, at most 100 MB, and that."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _reader(head: bytes) -> Any:
    """For what these bytes begin; None where they begin nothing that is read."""
    if head[:4] == b"PK\x03\x04":
        return pickles.read_zip
    if LEGACY in head[:64]:
        return pickles.read_legacy
    if head[:6] == b"\x93NUMPY" and b"'descr': '|O'" in head[:128]:
        return pickles.read_npy
    return pickles.read_plain if PICKLE.match(head) else None


def _read(file: IO[bytes], reader: Any) -> Content:
    """By torch.load where it takes the file for data alone, else as :mod:`.pickles` reads it."""
    if reader in (pickles.read_zip, pickles.read_legacy):
        try:
            return Content(torch.load(file, map_location="cpu", weights_only=True))
        except Exception:  # a dozen types for what it does not like; out of memory, too, for a size that is damaged
            file.seek(0)
    return Content(*reader(file))


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    """A zip archive as torch.save writes it, where somebody packed it anew with compression."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if all(record.compress_type == zipfile.ZIP_STORED for record in records):
            file.seek(0)
            return file
        plain = io.BytesIO()
        with zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as stored:
            for record in records:
                stored.writestr(record.filename, archive.read(record))
    plain.seek(0)
    return plain


def _is_npz(file: IO[bytes]) -> bool:
    with zipfile.ZipFile(file) as archive:
        return not any(pickles.is_pickle_in_zip(name) for name in archive.namelist())


def _npz(file: IO[bytes]) -> dict[str, torch.Tensor]:
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return {name: torch.from_numpy(array) for name, array in found.items() if array.dtype.kind in "fiub"}
