"""What a file is that holds no weights which can be read here: told by its bytes, never by its name alone."""

import tarfile
import zipfile
from pathlib import Path
from typing import IO

from ..errors import printable

HEAD, TAIL = 4096, 8  # bytes looked at

AGAIN = "copy or download it again"
UNPACK = "unpack it, and name the file in it"
FOREIGN = "convert it to PyTorch with the tool that made it, or name the PyTorch file that it was made from"
EXPORTED = "name the PyTorch file that it was exported from"
NOT_WEIGHTS = "name the file that holds the weights"
PAGE = "the download gave a page in its place: open the link in a browser, or log in, and fetch the file itself"

# (where, bytes, what it is, the way on)
SIGNATURES: list[tuple[int, bytes, str, str]] = [
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull where it was cloned"),
    (0, b"\x1f\x8b", "compressed by gzip", UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed by xz", UNPACK),
    (0, b"BZh", "compressed by bzip2", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", FOREIGN),
    (0, b"GGUF", "a GGUF file", FOREIGN),
    (4, b"TFL3", "a TensorFlow Lite model", FOREIGN),
    (0, b"model_checkpoint_path:", "TensorFlow's list of its checkpoints", FOREIGN),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file", FOREIGN),
    (0, b"ftrt", "a TensorRT engine", EXPORTED),
    (
        0,
        b"\x93NUMPY",
        "a single numpy array",
        "save a dictionary of arrays by name with numpy.savez, or a state_dict()",
    ),
    (0, b"\x89PNG\r\n", "an image", NOT_WEIGHTS),
    (0, b"\xff\xd8\xff", "an image", NOT_WEIGHTS),
    (0, b"GIF8", "an image", NOT_WEIGHTS),
    (8, b"WEBP", "an image", NOT_WEIGHTS),
    (0, b"%PDF", "a PDF", NOT_WEIGHTS),
    (0, b"\x7fELF", "a program", NOT_WEIGHTS),
    (0, b"\x00\x05\x16\x07", "what macOS puts beside a file", "name the file itself, without ._ before its name"),
]
TF_TABLE = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # how an index of TensorFlow's checkpoints ends

# Of zip archives: a file in it, what the archive is, the way on
TRUSTED = "where you trust it, save its weights, torch.save({}, NEW), or name OWN.py:FUNCTION that returns {}"
TORCHSCRIPT = TRUSTED.format("torch.jit.load(FILE).state_dict()", "torch.jit.load(FILE)")
EXPORT = TRUSTED.format("dict(torch.export.load(FILE).state_dict)", "torch.export.load(FILE).module()")
IN_ZIP: list[tuple[str, str, str]] = [
    ("constants.pkl", "a TorchScript archive, a program with its weights", TORCHSCRIPT),
    ("serialized_exported_program.json", "a torch.export archive", EXPORT),
    ("archive_format", "a torch.export archive", EXPORT),
    ("extern_modules", "a torch.package archive, a program with its weights", "save the network's state_dict()"),
    ("model.weights.h5", "a Keras model", FOREIGN),
    ("coremldata.bin", "a Core ML model", EXPORTED),
]


def named(file: IO[bytes], path: Path) -> tuple[str, str] | None:
    """What the file is and what to do about it, where it is none to be read here; None where nothing is recognised."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        return "empty", AGAIN
    if not any(head):
        return "nothing but zeros, as an interrupted copy leaves it", AGAIN
    for start, signature, what, remedy in SIGNATURES:
        if head[start : start + len(signature)] == signature:
            return what, remedy
    if head[:4] == b"PK\x03\x04":
        return _zip(file)
    for recognised in (_tar(file), _export(file, head, path), _text(head, path)):
        if recognised:
            return recognised
    return None


def _zip(file: IO[bytes]) -> tuple[str, str] | None:
    """None for what torch.save or numpy.savez write."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # zipfile has a dozen types for a damaged file
        return "damaged: it is cut short or its directory is", AGAIN
    last = {name.rpartition("/")[2] for name in names}
    for inside, what, remedy in IN_ZIP:
        if inside in last:
            return what, remedy
    if any(name.endswith("/data.pkl") for name in names) or all(name.endswith(".npy") for name in names):
        return None
    return f"a zip archive of {_some(names)}", UNPACK


def _some(names: list[str]) -> str:
    shown = [name for name in names if not name.endswith("/")][:3]
    return printable(", ".join(shown)) + (", ..." if len(names) > len(shown) else "") if shown else "nothing"


def _tar(file: IO[bytes]) -> tuple[str, str] | None:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            names = archive.getnames()
    except Exception:  # as of zipfile
        return None
    if {"pickle", "storages", "tensors"} <= set(names):
        remedy = "where you trust it, save it anew: torch.save(torch.load(FILE, weights_only=False), NEW)"
        return "in PyTorch's first format, of before 2017", remedy
    return f"a tar archive of {_some(names)}", UNPACK


def _export(file: IO[bytes], head: bytes, path: Path) -> tuple[str, str] | None:
    """ONNX, TensorFlow, Flax: these have no bytes of their own at the beginning."""
    if path.suffix == ".onnx" or (head[0] == 8 and head[1] < 32 and head[2] in (0x12, 0x3A) and b"torch" in head[:64]):
        return "an ONNX model", EXPORTED
    file.seek(-min(TAIL, file.seek(0, 2)), 2)
    if file.read() == TF_TABLE or ".data-0000" in path.name or path.name == "saved_model.pb":
        return "a part of a TensorFlow model", FOREIGN
    if path.suffix == ".msgpack":
        return "a Flax model", FOREIGN
    return None


def _text(head: bytes, path: Path) -> tuple[str, str] | None:
    if len(head) < 16:  # too little to tell
        return None
    try:
        text = head.decode("utf-8-sig").lstrip().lower()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a letter that the end of the head cuts
            return None
        text = head[: error.start].decode("utf-8-sig").lstrip().lower()
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return None
    if text.startswith(("<!doctype html", "<html", "<head", "<!--")) or "<html" in text[:1000]:
        return "a web page", PAGE
    if text.startswith("<?xml"):
        return "XML text, such as a server's answer that there is no such file", PAGE
    kind = "JSON text" if text.startswith(("{", "[")) else "YAML text" if path.suffix in (".yaml", ".yml") else "text"
    return f"{kind} that begins {' '.join(text.split())[:40]!r}", NOT_WEIGHTS
