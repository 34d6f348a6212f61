"""AEAHL-RG: meta-learned inversion with a reusable generator (after Fast-Datafree, Fang et al. 2022).

G(z) = d((g1(z) + g2(z)) / 2);  in the reuse modes g2 and d come from an earlier task, g1 is always new
a round:
    theta' <- theta (g1, g2, d);  z ~ N(0, I) (B, nz);  y ~ U{0..C-1}
    for k = 1..K
        x    <- G_theta'(z);  x~ <- augment(x)
        L    =  bn * L_bn(x~) + oh * L_oh(x~, y) + adv * L_adv(x~)   L_adv not in warm-up; without BN other priors
        with --hl, P learns one step on x~
        meta gradient += dL/dtheta'
        theta', z <- Adam(lr_g, lr_z)
        remember the x of the lowest L
    theta <- meta step: FOMAML (Adam, lr_g * K), Reptile (likewise), or plainly theta'
    L_bn's running average takes in the round's statistics;  the best x goes to the pool
at the end: measure the networks' BatchNorm statistics anew
    score g1 and g2; the better one and d for the next task, the other one beside them

RG is the reusable generator; AEAHL, the hard loss by adversarial example attack, is in datafree/targets/. L is summed
and reported, term by term, in ``Inversion.objective`` (inversion.py): a term of one's own goes there.
"""

import copy
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch
from ..data.specs import Shape
from ..engine.context import Context
from ..engine.randomness import initialising
from ..errors import UserError
from ..losses.kd import one_hot_loss
from ..models.generator import Decoder, GenerativeNetwork, ReusableGenerator
from ..models.generator_files import (
    ABANDONED_FILE,
    DECODER_FILE,
    GENERATOR_FILE,
    files_in,
    load_decoder,
    load_generative_network,
    part,
)
from ..runs.folder import folder_name
from .base import Leaving
from .inversion import META_GRADIENTS, Best, GeneratorConfig, LossConfig, MetaInversion, meta_step, saved_width
from .priors import Priors

PARTS, PICKS = ("g1", "g2", "d"), ("score", "g1", "g2")
SCORING = 4  # batches; chosen by us


@dataclass(frozen=True)
class Mode:
    """How the reused parts, g2 and d, begin and learn. Their rate is a factor on lr_g; None: --finetune_factor."""

    reuse: bool
    rate: float | None
    help: str


MODES = {
    "anew": Mode(False, 1.0, "g1, g2, d start at random"),
    "reuse_common": Mode(True, 1.0, "g2, d are loaded and trained like g1"),
    "reuse_finetune": Mode(True, None, "g2, d are loaded and trained more slowly"),
    "reuse_fix": Mode(True, 0.0, "g2, d are loaded, their weights frozen"),
}


@dataclass(frozen=True)
class ReuseConfig(configuration.Config):
    """What is reused, and how it goes on learning."""

    mode: str = knob("anew", "; ".join(f"{name}: {m.help}" for name, m in MODES.items()), choices=tuple(MODES))
    reuse_generator_path: Path | None = knob(None, "gan_reuse.pth (default: of the same task's anew run)", unit="FILE")
    reuse_decoder_path: Path | None = knob(None, "decoder.pth, likewise", unit="FILE")
    reuse_pick: str = knob(
        "score", "which network the next task gets; score: the one that inverts better by itself", choices=PICKS
    )
    finetune_factor: float = knob(
        0.1,
        "of reuse_finetune: lower keeps more of the earlier task",
        low=0,
        high=1,
        when={"mode": ("reuse_finetune",)},
    )


class AeahlRg(MetaInversion):
    """See the top of the file. Draws from the streams "synthesis", "sample", "recalibration" and "selection"."""

    @dataclass(frozen=True)
    class Config(LossConfig, GeneratorConfig, ReuseConfig):  # a dataclass has the fields of its last base first
        meta: str = knob(
            "fomaml", "how inner steps change the generator; none: plain updating", choices=(*META_GRADIENTS,)
        )

    def __init__(self, context: Context, config: "AeahlRg.Config"):
        shape, paths = context.spec.shape, (config.reuse_generator_path, config.reuse_decoder_path)
        width, saved = None, context.saved() if any(paths) else None
        if saved is not None:  # restored once all is built: the files, which may be gone, are not needed any more
            width, paths = saved_width(saved, "g2.conv_blocks.0.weight"), ()
        generator = build_generator(context.streams.seed, config.nz, config.ngf, shape, *paths, g2_width=width)
        mode = MODES[config.mode]
        reused = config.finetune_factor if mode.rate is None else mode.rate
        rates = {name: rate for name, rate in (("g1", 1.0), ("g2", reused), ("d", reused)) if rate > 0}
        for name in PARTS:
            getattr(generator, name).requires_grad_(name in rates)
        super().__init__(context, config, generator, rates)

    @classmethod
    def complete(cls, values: Namespace) -> None:
        paths, reuse = (values.reuse_generator_path, values.reuse_decoder_path), MODES[values.mode].reuse
        if not reuse and any(paths):
            raise UserError(f"mode {values.mode} reuses nothing", "choose a reuse mode, or leave the reuse paths out")
        if reuse and not any(paths):
            folder = values.run_root / folder_name("anew", values.dataset, values.teacher, values.student, values.tag)
            paths = files_in(folder, needed=not values.resume)
            values.reuse_generator_path, values.reuse_decoder_path = paths
        elif reuse and not all(paths):
            raise UserError("a reuse path is missing", "give --reuse_generator_path and --reuse_decoder_path")

    @classmethod
    def label(cls, values: Namespace) -> str:
        return values.mode

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self.generator, name) for name in PARTS}

    def synthesize(self, warmup: bool) -> Batch:
        config, rng = self.config, self.context.streams["synthesis"]
        B, device = config.synthesis_batch_size, self.context.compute.device
        self.adapted.load_state_dict(self.generator.state_dict())
        theta, adapted = self.trained(self.generator), self.trained(self.adapted)
        z = self.noise(rng).requires_grad_()
        y = torch.randint(self.context.spec.num_classes, (B,), generator=rng, device=device)
        inner_optimizer = self.adam(self.adapted, config.lr_g, z)
        summed = [torch.zeros_like(parameter) for parameter in adapted]
        best = Best()
        for _ in range(config.g_steps):
            x = self.context.ask(self.adapted, z)  # (B, nz) -> (B, C, H, W)
            loss = self.objective(x, y, adversarial=not warmup)  # of x~, and reported
            loss = self.context.backward(loss, [*adapted, z])  # their gradients anew
            torch._foreach_add_(summed, [parameter.grad for parameter in adapted])
            inner_optimizer.step()
            best.keep(x, loss)
        self.priors.update_average()
        meta_step(config.meta, self.meta_optimizer, theta, adapted, summed)
        return Batch(best.images)

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """How well each of g1, g2 inverts the teacher alone, its partner replaced by noise; lower is better.

            score_i = bn * L_bn + ... + oh * CE(T(x), argmax T(x)),   x = d((g_i(z) + u) / 2),   u ~ U(0, 1) per pixel

        The mean over SCORING batches; both see the same z and u. In train mode, as reuse_common and reuse_finetune will
        run them: d's running statistics are of (g1 + g2) / 2, not of (g_i + u) / 2.
        """
        context, rng = self.context, self.context.streams.again("selection")
        generator, priors = copy.deepcopy(self.generator).train(), Priors(context, self.config, bn_mmt=0.0)
        totals = {"g1": 0.0, "g2": 0.0}
        for _ in range(SCORING):
            z = self.noise(rng)
            u = torch.rand(len(z), *context.spec.shape, generator=rng, device=z.device)
            for name in totals:
                context.costs.count("generator", generator, z)
                with context.compute.autocast(), priors.listening():
                    x = generator.d((getattr(generator, name)(z) + u) / 2)
                    logits = context.teacher(x)
                L_oh = one_hot_loss(logits, logits.argmax(1))
                totals[name] += float(priors.weighted(priors.terms(x)) + self.config.oh * L_oh)
        priors.remove()
        return {name: total / SCORING for name, total in totals.items()}

    def finish(self) -> Leaving:
        """The decoder and the network that scores lower (or is named by --reuse_pick) for the next task."""
        self.recalibrate()
        scores = self.score()
        kept = min(scores, key=scores.get) if self.config.reuse_pick == "score" else self.config.reuse_pick
        left = {GENERATOR_FILE: kept, ABANDONED_FILE: "g2" if kept == "g1" else "g1"}
        contents = {
            file: part(network, "generative_network", network.config, self.context.origin | {"part": name})
            for file, name, network in ((f, n, getattr(self.generator, n)) for f, n in left.items())
        }
        made_for = {"img_size": self.context.spec.img_size, "channels": self.context.spec.shape[0]}
        contents[DECODER_FILE] = part(self.generator.d, "decoder", made_for, self.context.origin)
        told = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
        remark = f"inversion loss alone: {told}; the next task gets {kept} and d"
        return Leaving({"score_g1": scores["g1"], "score_g2": scores["g2"], "reused_network": kept}, contents, remark)


def build_generator(
    seed: int,
    nz: int,
    ngf: int,
    shape: Shape,
    generator_path: Path | None = None,
    decoder_path: Path | None = None,
    g2_width: int | None = None,
) -> ReusableGenerator:
    """G with random parts or, where paths are given, with g2 and d from an earlier task (g2 in the width it was saved).

    ``g2_width`` is the width of a random g2, where it is not ngf.

    Raises:
        UserError: if a file is not what it should be, or was made for images of another shape (C, H, W) or nz.
    """
    networks: dict[str, nn.Module] = {}
    for name, width in (("g1", ngf), ("g2", g2_width or ngf)):
        with initialising(seed, name):
            networks[name] = GenerativeNetwork(nz, width, shape[1:], shape[0])
    with initialising(seed, "d"):
        networks["d"] = Decoder(shape[0])
    if generator_path is not None:
        networks["g2"] = load_generative_network(generator_path, nz, shape)
    if decoder_path is not None:
        networks["d"] = load_decoder(decoder_path, shape)
    return ReusableGenerator(**networks)
