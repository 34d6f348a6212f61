"""What one task leaves for the next, as files: the decoder and one generative network, with where they come from."""

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .. import files
from ..data.specs import Shape, pair, size_text
from ..errors import UserError
from .generator import Decoder, GenerativeNetwork
from .loading import load_into, state_dict_of

Generative = TypeVar("Generative", bound=GenerativeNetwork)
GENERATOR_FILE, DECODER_FILE, ABANDONED_FILE = "gan_reuse.pth", "decoder.pth", "gan_abandon.pth"
LASTING_FILE = "generator.pth"  # of methods with one generator that lasts the whole run


def load_generative_network(
    path: Path, nz: int, shape: Shape, made: type[Generative] = GenerativeNetwork, **how: Any
) -> Generative:
    """A saved generative network of that class, made with ``how``, in the width it was saved in.

    Raises:
        UserError: if the file is not what it should be, or was made for images of another shape (C, H, W) or nz.
    """
    what = "reusable generative network"
    content = _load_part(path, what, made.kind, shape, nz=nz)
    width = content["config"].get("ngf")
    if not isinstance(width, int) or not 0 < width <= 4096:
        raise UserError(f"{what} {path} names no valid width", "give the file that a run wrote")
    network = made(nz, width, shape[1:], shape[0], **how)
    load_into(network, state_dict_of(content, path, what), path, what)
    return network


def load_decoder(path: Path, shape: Shape) -> Decoder:
    """A saved decoder. Raises UserError as :func:`load_generative_network` does."""
    what = "reusable decoder"
    content = _load_part(path, what, "decoder", shape)
    decoder = Decoder(shape[0])
    load_into(decoder, state_dict_of(content, path, what), path, what)
    return decoder


def _load_part(path: Path, what: str, kind: str, shape: Shape, **made_for: int) -> dict[str, Any]:
    content = files.load(path, what)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict) or "state_dict" not in content:
        raise UserError(f"{what} {path} has no configuration", "give the file that an earlier run wrote")
    if content.get("kind") != kind:
        raise UserError(f"{what} {path} holds a {content.get('kind')}", f"give a file that holds a {kind}")
    was = {"channels": 3} | content["config"]  # files of the version before say nothing of channels
    if isinstance(was.get("img_size"), int | list | tuple):
        was["img_size"] = size_text(pair(was["img_size"]))
    for name, wanted in {"img_size": size_text(shape[1:]), "channels": shape[0], **made_for}.items():
        if was.get(name) != wanted:
            raise UserError(f"{what} {path} was made for {name} {was.get(name)}, not {wanted}", "give a matching one")
    return content


def files_in(folder: Path, needed: bool = True) -> tuple[Path, Path]:
    """The generative network and the decoder that a run left. Raises UserError where they are needed and not there."""
    paths = folder / GENERATOR_FILE, folder / DECODER_FILE
    if needed and not all(path.is_file() for path in paths):
        raise UserError(
            f"nothing to reuse in {folder}",
            "run --mode anew first, or give --reuse_generator_path and --reuse_decoder_path",
        )
    return paths


def part(network: nn.Module, kind: str, config: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """The content of such a file: plain values and tensors."""
    return {"kind": kind, "config": config, "origin": origin, "state_dict": network.state_dict()}
