"""What one task leaves for the next: the decoder and one generative network, with where they come from.

Which of g1, g2 is kept: each is scored alone, as the next task will first meet it, its partner not yet trained:

    score_i = bn * L_bn + oh * CE(T(x~), argmax T(x~)),    x = d((g_i(z) + u) / 2),  u ~ U(0, 1) per pixel

The lower score is kept.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .bn_statistics import BNStatistics
from .data.augment import Augmentation
from .device import Compute
from .errors import UserError
from .losses import one_hot_loss
from .models.generator import Decoder, GenerativeNetwork, ReusableGenerator
from .randomness import Streams, initialising

GENERATOR_FILE, DECODER_FILE, ABANDONED_FILE = "gan_reuse.pth", "decoder.pth", "gan_abandon.pth"


def build_generator(
    seed: int, nz: int, ngf: int, img_size: int, generator_path: Path | None = None, decoder_path: Path | None = None
) -> ReusableGenerator:
    """G with random parts or, where paths are given, with g2 and d from an earlier task (g2 in the width it was saved).

    Raises:
        UserError: if a file is not what it should be, or was made for another image size or nz.
    """
    networks = {}
    for part in ("g1", "g2"):
        with initialising(seed, part):
            networks[part] = GenerativeNetwork(nz, ngf, img_size)
    with initialising(seed, "d"):
        networks["d"] = Decoder()
    if generator_path is not None:
        networks["g2"] = load_generative_network(generator_path, nz, img_size)
    if decoder_path is not None:
        load_decoder(networks["d"], decoder_path, img_size)
    return ReusableGenerator(**networks)


def load_generative_network(path: Path, nz: int, img_size: int) -> GenerativeNetwork:
    """A saved generative network. Raises UserError as :func:`build_generator` does."""
    what = "reusable generative network"
    content = _load_part(path, what, "generative_network")
    config = content["config"]
    for name, wanted in (("img_size", img_size), ("nz", nz)):
        if config.get(name) != wanted:
            raise UserError(
                f"{what} {path} was made for {name} {config.get(name)}, not {wanted}", "give a matching one"
            )
    width = config.get("ngf")
    if not isinstance(width, int) or not 0 < width <= 4096:
        raise UserError(f"{what} {path} names no valid width", "give the file that a run wrote")
    network = GenerativeNetwork(nz, width, img_size)
    checkpoint.load_into(network, checkpoint.state_dict_of(content, path, what), path, what)
    return network


def load_decoder(decoder: Decoder, path: Path, img_size: int) -> None:
    """Fills a decoder from a saved one. Raises UserError as :func:`build_generator` does."""
    what = "reusable decoder"
    content = _load_part(path, what, "decoder")
    if content["config"].get("img_size") != img_size:
        made_for = content["config"].get("img_size")
        raise UserError(f"{what} {path} was made for img_size {made_for}, not {img_size}", "give a matching one")
    checkpoint.load_into(decoder, checkpoint.state_dict_of(content, path, what), path, what)


def _load_part(path: Path, what: str, kind: str) -> dict:
    content = checkpoint.load(path, what)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict) or "state_dict" not in content:
        raise UserError(f"{what} {path} has no configuration", "give the file that an earlier run wrote")
    if content.get("kind") != kind:
        raise UserError(f"{what} {path} holds a {content.get('kind')}", f"give a file that holds a {kind}")
    return content


@torch.no_grad()
def score_networks(
    generator: ReusableGenerator,
    teacher: nn.Module,
    augmentation: Augmentation,
    compute: Compute,
    streams: Streams,
    bn: float,
    oh: float,
    batch_size: int,
    batches: int = 4,
) -> dict[str, float]:
    """The score of g1 and of g2, mean over ``batches`` (4, chosen by us); both see the same z and u.

    In train mode, as reuse_common and reuse_finetune will run them: d's running statistics are of (g1 + g2) / 2, not
    of (g_i + u) / 2. Works on a copy, so the generator's own statistics stay; draws from the stream "selection".
    """
    generator = copy.deepcopy(generator).train()
    statistics = BNStatistics(teacher, momentum=0.0)
    totals = {"g1": 0.0, "g2": 0.0}
    for _ in range(batches):
        nz, size = generator.g1.config["nz"], generator.g1.config["img_size"]
        rng = streams["selection"]
        z = torch.randn(batch_size, nz, generator=rng, device=compute.device)
        u = torch.rand(batch_size, 3, size, size, generator=rng, device=compute.device)
        for part in totals:
            with compute.autocast(), statistics.listening():
                x = generator.d((getattr(generator, part)(z) + u) / 2)
                logits = teacher(augmentation.normalise(x))
            totals[part] += _inversion_loss(statistics, logits, bn, oh)
    statistics.remove()
    return {part: total / batches for part, total in totals.items()}


def _inversion_loss(statistics: BNStatistics, logits: Tensor, bn: float, oh: float) -> float:
    return (bn * statistics.loss().to(logits.device) + oh * one_hot_loss(logits, logits.argmax(1))).item()


def files_in(folder: Path) -> tuple[Path, Path]:
    """The generative network and the decoder that a run left. Raises UserError where it left none."""
    paths = folder / GENERATOR_FILE, folder / DECODER_FILE
    if not all(path.is_file() for path in paths):
        raise UserError(
            f"nothing to reuse in {folder}",
            "run --mode anew first, or give --reuse_generator_path and --reuse_decoder_path",
        )
    return paths


def save_parts(generator: ReusableGenerator, kept: str, folder: Path, origin: dict) -> None:
    """Writes d, the kept network and the abandoned one, with configuration and origin (plain values)."""
    abandoned = "g2" if kept == "g1" else "g1"
    for part, name in ((kept, GENERATOR_FILE), (abandoned, ABANDONED_FILE)):
        network = getattr(generator, part)
        content = {"kind": "generative_network", "config": network.config, "origin": {**origin, "part": part}}
        checkpoint.save({**content, "state_dict": network.state_dict()}, folder / name)
    content = {"kind": "decoder", "config": {"img_size": generator.g1.config["img_size"]}, "origin": origin}
    checkpoint.save({**content, "state_dict": generator.d.state_dict()}, folder / DECODER_FILE)
