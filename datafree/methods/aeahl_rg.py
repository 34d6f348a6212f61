"""AEAHL-RG: meta-learned inversion with a reusable generator (after Fast-Datafree, Fang et al. 2022).

G(z) = d((g1(z) + g2(z)) / 2);  in the reuse modes g2 and d come from an earlier task, g1 is always new
a round:
    theta' <- theta (g1, g2, d);  z ~ N(0, I) (B, nz);  y ~ U{0..C-1}
    for k = 1..K
        x    <- G_theta'(z);  x~ <- augment(x)
        L    =  bn * L_bn(x~) + oh * L_oh(x~, y) + adv * L_adv(x~)   L_adv not in warm-up; without BN other priors
        meta gradient += dL/dtheta'
        theta', z <- Adam(lr_g, lr_z)
        remember the x of the lowest L
    theta <- meta step: FOMAML (Adam, lr_g * K), Reptile (likewise), or plainly theta'
    the best x goes to the pool
at the end: score g1 and g2; the better one and d for the next task, the other one beside them
"""

import copy
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch
from ..data.specs import Shape
from ..engine.context import Context
from ..engine.randomness import initialising
from ..errors import UserError
from ..losses.kd import adversarial_loss, one_hot_loss
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
from .base import Leaving, Method
from .inversion import META_GRADIENTS, Best, meta_step, recalibrate
from .priors import Priors

AUTO = "(default: 0 for a teacher with BatchNorm)"
PARTS, PICKS = ("g1", "g2", "d"), ("score", "g1", "g2")
RECALIBRATION, SCORING = 20, 4  # batches; chosen by us


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


class AeahlRg(Method):
    """See the top of the file. Draws from the streams "synthesis", "sample", "recalibration" and "selection"."""

    @dataclass(frozen=True)
    class Config(configuration.Config):
        mode: str = knob("anew", "; ".join(f"{name}: {m.help}" for name, m in MODES.items()), choices=tuple(MODES))
        reuse_generator_path: Path | None = knob(
            None, "gan_reuse.pth (default: of the same task's anew run)", unit="FILE"
        )
        reuse_decoder_path: Path | None = knob(None, "decoder.pth, likewise", unit="FILE")
        reuse_pick: str = knob(
            "score", "which network the next task gets; score: the one that inverts better by itself", choices=PICKS
        )
        finetune_factor: float = knob(0.1, "of reuse_finetune: lower keeps more of the earlier task", low=0, high=1)
        synthesis_batch_size: int = knob(256, "images made a round", low=1, high=2**16, unit="IMAGES")
        g_steps: int = knob(10, "generator iterations a round; more give better images, slower", low=1, unit="K")
        nz: int = knob(256, "length of the noise vector z", low=1, high=2**16, unit="N")
        ngf: int = knob(64, "width of g1 and g2; lower is faster", low=1, high=2**16, unit="CHANNELS")
        lr_g: float = knob(
            2e-3, "learning rate of the generator in an iteration; of the meta step, times g_steps", above=0
        )
        lr_z: float = knob(0.01, "learning rate of z", above=0)
        adam_betas: tuple[float, float] = knob((0.5, 0.999), "of Adam", low=0, high=0.9999, unit="BETA")
        bn: float = knob(10.0, "weight of L_bn: raise it for images closer to the teacher's training data", low=0)
        tv: float | None = knob(None, f"weight of L_tv: raise it for smoother images {AUTO}", low=0)
        l2: float | None = knob(None, f"weight of L_l2: raise it for paler images {AUTO}", low=0)
        patch: float | None = knob(None, f"weight of L_patch: raise it for more varied patches {AUTO}", low=0)
        oh: float = knob(0.5, "weight of L_oh: raise it for images of clearer class", low=0)
        adv: float = knob(1.33, "weight of L_adv: raise it for images that the student finds harder", low=0)
        bn_mmt: float = knob(
            0.9,
            "weight of the statistics of earlier rounds beside the batch's; 0: each batch alone",
            low=0,
            high=0.9999,
        )
        meta: str = knob(
            "fomaml", "how inner steps change the generator; none: plain updating", choices=(*META_GRADIENTS,)
        )

    def __init__(self, context: Context, config: "AeahlRg.Config"):
        super().__init__(context, config)
        self.priors = Priors(context, config, config.bn_mmt)
        shape, paths = context.spec.shape, (config.reuse_generator_path, config.reuse_decoder_path)
        width, saved = None, context.saved() if any(paths) else None
        if saved is not None:  # restored once all is built: the files, which may be gone, are not needed any more
            width, paths = saved_width(saved), ()
        generator = build_generator(context.streams.seed, config.nz, config.ngf, shape, *paths, g2_width=width)
        self.generator = context.compute.place(generator).train()  # theta
        mode = MODES[config.mode]
        reused = config.finetune_factor if mode.rate is None else mode.rate
        self.rates = {name: rate for name, rate in (("g1", 1.0), ("g2", reused), ("d", reused)) if rate > 0}
        for name in PARTS:
            getattr(self.generator, name).requires_grad_(name in self.rates)
        self.adapted = copy.deepcopy(self.generator)  # theta'
        self.meta_optimizer = self._adam(self.generator, config.lr_g * config.g_steps)

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

    @property
    def remarks(self) -> list[str]:
        return [str(self.priors)]

    @property
    def busy(self) -> list[nn.Module]:
        return [self.adapted]

    def synthesize(self, warmup: bool) -> Batch:
        config, rng = self.config, self.context.streams["synthesis"]
        B, device = config.synthesis_batch_size, self.context.compute.device
        self.adapted.load_state_dict(self.generator.state_dict())
        theta, adapted = self._trained(self.generator), self._trained(self.adapted)
        z = torch.randn(B, config.nz, generator=rng, device=device).requires_grad_()
        y = torch.randint(self.context.spec.num_classes, (B,), generator=rng, device=device)
        inner_optimizer = self._adam(self.adapted, config.lr_g, z)
        summed = [torch.zeros_like(parameter) for parameter in adapted]
        best = Best()
        for _ in range(config.g_steps):
            x = self.context.ask(self.adapted, z)  # (B, nz) -> (B, C, H, W)
            loss = self.objective(x, y, adversarial=not warmup and config.adv > 0)
            self.context.backward(loss, [*adapted, z])
            torch._foreach_add_(summed, [parameter.grad for parameter in adapted])
            inner_optimizer.step()
            best.keep(x, loss)
        self.priors.update_average()
        meta_step(config.meta, self.meta_optimizer, theta, adapted, summed)
        return Batch(best.images)

    def objective(self, x: Tensor, y: Tensor, adversarial: bool) -> Tensor:
        """L of images x (B, C, H, W) in [0, 1] for classes y (B,).

        A new term: its weight is a field of Config, its value is added to ``loss`` and, by a name that begins with
        "loss_", to what ``context.report`` gets, which makes it a column of metrics.csv. What asks the images alone, or
        layers of the teacher, is a prior (priors.py) and then counts in :meth:`score`, too.
        """
        context, config = self.context, self.config
        x = context.augmentation(x, context.streams["synthesis"])  # x~
        with self.priors.listening():
            teacher_logits = context.ask(context.teacher, x)
        L_priors = self.priors.terms(x)  # by name: L_bn, or what stands in for it
        L_oh = one_hot_loss(teacher_logits, y)
        L_adv = torch.zeros_like(L_oh)
        if adversarial:
            with context.student_as_judge() as student:
                L_adv = adversarial_loss(teacher_logits, context.ask(student, x))
        loss = self.priors.weighted(L_priors) + config.oh * L_oh + config.adv * L_adv
        context.report(L_priors | {"loss_oh": L_oh, "loss_adv": L_adv, "loss_generator": loss})
        context.observe(x, teacher_logits)
        return loss

    def _trained(self, generator: ReusableGenerator) -> list[Tensor]:
        return [parameter for name in self.rates for parameter in getattr(generator, name).parameters()]

    def _adam(self, generator: ReusableGenerator, lr: float, z: Tensor | None = None) -> torch.optim.Adam:
        """Adam over the trained parts, each at its own rate, and over z where given."""
        groups = [
            {"params": list(getattr(generator, name).parameters()), "lr": lr * rate}
            for name, rate in self.rates.items()
        ]
        if z is not None:
            groups.append({"params": [z], "lr": self.config.lr_z})
        return torch.optim.Adam(groups, betas=self.config.adam_betas, fused=True)

    def _noise(self, rng: torch.Generator, count: int | None = None) -> Tensor:
        shape = (count or self.config.synthesis_batch_size, self.config.nz)
        return torch.randn(shape, generator=rng, device=self.context.compute.device)

    @torch.no_grad()
    def recalibrate(self) -> None:
        """Gives theta BN statistics of its own, always from the same noise: they depend on its weights alone."""
        rng = self.context.streams.again("recalibration")
        noise = [self._noise(rng) for _ in range(RECALIBRATION)]
        self.context.costs.count("generator", self.generator, torch.cat(noise))
        with self.context.compute.autocast():
            recalibrate(self.generator, noise)

    @torch.no_grad()
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        self.recalibrate()
        z = self._noise(self.context.streams[stream], count)
        self.generator.eval()
        x = torch.cat([self.context.ask(self.generator, part) for part in z.split(self.config.synthesis_batch_size)])
        self.generator.train()
        return x

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
            z = self._noise(rng)
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

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "priors": self.priors.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.priors.load_state_dict(state["priors"])


def saved_width(state: Mapping[str, Any]) -> int | None:
    """Of g2 in a saved state: that of an earlier task may be of another ngf. None where there is no g2."""
    first = state.get("generator", {}).get("g2.conv_blocks.0.weight")
    return None if first is None else len(first) // 2


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
