"""The export whole: written beside its place, run, compared with the student, and only then put there.

student, origin = student_of("run/anew-digits-resnet20-resnet8", registry)
export(student, origin, ["safetensors", "onnx"], Path("resnet8"))
"""

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..errors import UserError, first_line
from ..models.classifier import Classifier, duplicate, in_fp32, make_ordinary
from .card import CARD_FILE, card
from .formats import FORMATS, ONNX_FILE, TORCH_EXPORT_FILE, Subject
from .libraries import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, Library, library_of
from .origin import Origin

TOLERANCE = 1e-4  # chosen by us: fp32 sums in another order differ by some 1e-6
BATCHES = (1, 2, 5)  # images at a time when an export is compared
WRITTEN = (CARD_FILE, CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, ONNX_FILE, f"{ONNX_FILE}.data", TORCH_EXPORT_FILE)


@dataclass(frozen=True)
class Difference:
    """Between the logits of an export and of the student: the largest, and the largest logit."""

    value: float
    logit: float

    @property
    def relative(self) -> float:
        """To the largest logit."""
        return self.value / (self.logit or 1.0)

    def __str__(self) -> str:
        return f"largest difference from the student {self.value:.2g}, of logits up to {self.logit:.3g}"


def export(
    student: Classifier,
    origin: Origin,
    formats: Sequence[str],
    out: Path,
    *,
    inside: bool = True,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> dict[str, Difference]:
    """Writes a student into a folder in one or more formats, with its configuration and a model card.

    Each format is read back by what reads it elsewhere, and answers random images; the folder appears only where all
    of them answer as the student does.

    Args:
        student: on any device; left as it is.
        origin: where it comes from.
        formats: names of FORMATS.
        out: the folder; made where it does not exist.
        inside: whether the graphs (onnx, torch_export) take pixels, and normalise by themselves.
        tolerance: the largest difference of a logit that is borne, in units of the largest logit.
        overwrite: whether an earlier export there is replaced. Other files in the folder are left alone.

    Returns:
        The difference by format.

    Raises:
        UserError: where a library is missing, a format does not bear the network, an export answers otherwise, the
            place is taken, or the disk is full.
    """
    check_place(out, overwrite)
    plain = as_made(student)
    _check_steady(plain)
    library = library_of(plain, origin)
    check_installed(formats, library)
    subject, differences = Subject(plain, library, inside), {}
    with _staged(out) as folder:
        safetensors = "safetensors" in formats
        for name, content in described(subject, origin, library_too=safetensors).items():
            _write_json(folder / name, content)
        for name in formats:
            FORMATS[name].write(subject, folder)
            differences[name] = compared(subject, folder, name)
            if not differences[name].relative <= tolerance:  # nor is NaN
                what = f"the {name} export of {origin.name} answers otherwise: {differences[name]}"
                raise UserError(what, f"nothing was left in {out}; --tolerance {tolerance:g} is what was borne")
        text = card(subject, origin, differences, tolerance, BATCHES)
        files.write_whole(folder / CARD_FILE, lambda file: file.write(text.encode(errors="xmlcharrefreplace")))
    return differences


def as_made(student: Classifier) -> Classifier:
    """A copy on the CPU, in fp32 and eval mode, with the layers and the memory order that its architecture has."""
    try:
        plain = duplicate(student)
    except Exception as error:  # whatever a module of the user's raises
        remedy = "save its state dict, load that into a new network, and export this"
        raise UserError(f"{student.name} cannot be copied: {first_line(error)}", remedy) from None
    plain = in_fp32(plain.cpu()).eval().requires_grad_(False)
    plain = plain.to(memory_format=torch.contiguous_format)
    plain.memory_format, plain.autocast = torch.contiguous_format, True
    make_ordinary(plain)
    return plain


@torch.no_grad()
def _check_steady(student: Classifier) -> None:
    """Raises UserError for one that draws random numbers where it is asked: no copy could answer as it does."""
    pixels = random_pixels(2, student)
    if not torch.allclose(student(pixels), student(pixels), equal_nan=True):
        what = f"{student.name} answers the same images otherwise each time"
        raise UserError(what, "take the dropout or noise out of its eval mode")


def check_installed(formats: Sequence[str], library: Library) -> None:
    """Raises UserError where what writes or reads a format is missing, or too old."""
    for name in formats:
        needed = (library.needs if name == "safetensors" else ()) + FORMATS[name].needs
        missing = [module for module in needed if not _imports(module)]
        if missing:
            remedy = "pip install -r requirements-models.txt"
            raise UserError(f"exporting to {name} needs {', '.join(missing)}", remedy)
        if torch.__version__ < FORMATS[name].torch:
            least = ".".join(map(str, FORMATS[name].torch))
            raise UserError(
                f"exporting to {name} needs PyTorch {least}, this is {torch.__version__}",
                "pip install --upgrade torch torchvision",
            )


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def described(subject: Subject, origin: Origin, library_too: bool) -> dict[str, dict[str, Any]]:
    """The JSON files by name: input format and origin, and what the architecture's library wants beside them."""
    student, library = subject.student, subject.library
    takes = student.input_format | {"channels": student.channels, "interpolation": "bilinear", "pixels": [0, 1]}
    takes["normalisation_of_graphs"] = "inside" if subject.inside else "outside"
    named = {"class_names": list(origin.class_names)} if origin.class_names else {}
    mine = {"input_format": takes, **named, "origin": origin.plain()}
    whose = library if library_too else Library(student, origin)
    return {CONFIG_FILE: whose.config() | mine, **(whose.files() if library_too else {})}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    files.write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@torch.no_grad()
def compared(subject: Subject, folder: Path, name: str) -> Difference:
    """Reads a format back and has it answer random pixels, in batches of several sizes, beside the student."""
    pixels = random_pixels(sum(BATCHES), subject.student)
    try:
        answer = FORMATS[name].load(subject, folder)
        pairs: list[tuple[Tensor, Tensor]] = [(subject.student(x), answer(x)) for x in pixels.split(BATCHES)]
    except UserError:
        raise
    except Exception as error:  # of whichever library
        remedy = "choose another --format, or pip install --upgrade -r requirements-models.txt"
        raise UserError(f"the {name} export cannot be read back: {first_line(error)}", remedy) from None
    differences = torch.cat([(theirs - ours).abs().flatten() for ours, theirs in pairs])
    return Difference(differences.max().item(), max(ours.abs().max().item() for ours, _ in pairs))


def random_pixels(count: int, student: Classifier) -> Tensor:
    """Images (count, C, H, W) in [0, 1], the same ones every time: coarse patches under noise, for noise alone looks
    the same to many a network."""
    draws = torch.Generator().manual_seed(0)
    patches = torch.rand(count, student.channels, 4, 4, generator=draws)
    noise = torch.rand(count, student.channels, *student.img_size, generator=draws)
    return 0.7 * nn.functional.interpolate(patches, student.img_size) + 0.3 * noise


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError where the folder cannot be made, or holds what may not be replaced."""
    if not out.is_dir():
        files.check_writable(out)
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} is a {'file' if out.exists() else 'link to nothing'}", "name a folder with --out")
        return
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: no permission", "choose another place with --out")
    if any(not entry.name.startswith(".") for entry in out.iterdir()):  # of a clone that is to be filled, .git is there
        if not overwrite:
            raise UserError(f"{out} is not empty", "give --overwrite to replace an export, or --out for another place")
        if not is_export(out):
            raise UserError(f"{out} is not empty and holds no export", "name another folder with --out")


def is_export(folder: Path) -> bool:
    """Whether an earlier export is what the folder holds."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"input_format", "origin"} <= config.keys()


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder on the disk of ``out`` whose files go there at the end, if it is reached; else nothing is left."""
    out = out.absolute()
    beside = next(folder for folder in (out, *out.parents) if folder.is_dir())
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=beside))
        yield temporary
        out.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            if (temporary / name).exists():
                os.replace(temporary / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)  # of the export before
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}", "choose another place with --out") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
