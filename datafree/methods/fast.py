"""Fast: meta-learned inversion with one generator that lasts the whole run (Fang et al., AAAI 2022).

G: theta;  a round of fast_meta:
    theta' <- theta;  z ~ N(0, I) (B, nz);  y ~ U{0..C-1}
    for k = 1..K
        x    <- G_theta'(z);  x~ <- augment(x)
        L    =  bn * L_bn(x~) + oh * L_oh(x~, y) + adv * L_adv(x~)   L_adv not in warm-up; without BN other priors
        meta gradient += dL/dtheta'
        theta', z <- Adam(lr_g, lr_z)
        remember the x of the lowest L
    theta <- meta step: FOMAML (Adam, lr_g * K, on the sum) or Reptile (likewise, on theta - theta')
    the best x goes to the pool
a round of fast: the same with theta <- theta', which is theta trained by a new Adam
once, where asked: the first linear layer and the first BatchNorm of G are drawn anew
at the end: G for the next task
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration import knob
from ..data.batch import Batch
from ..engine.context import Context
from ..engine.randomness import initialising
from ..models.generator import ImageGenerator
from ..models.generator_files import LASTING_FILE, load_generative_network, part
from .base import Leaving
from .inversion import Best, GeneratorConfig, LossConfig, MetaInversion, meta_step, saved_width


class FastMeta(MetaInversion):
    """See the top of the file. Draws from "reset", too."""

    @dataclass(frozen=True)
    class Config(LossConfig, GeneratorConfig):
        meta: str = knob("fomaml", "how inner steps change the generator", choices=("fomaml", "reptile"))
        reset_l0: float = knob(
            0.0, "share of the run at which the generator's first layers are drawn anew, once; 0: never", low=0, high=1
        )
        reuse_path: Path | None = knob(None, f"{LASTING_FILE} of an earlier run, to begin with", unit="FILE")

    def __init__(self, context: Context, config: "FastMeta.Config"):
        shape, width, path = context.spec.shape, config.ngf, config.reuse_path
        saved = context.saved() if path else None
        if saved is not None:  # restored once all is built: the file, which may be gone, is not needed any more
            width, path = saved_width(saved, "conv_blocks.0.weight") or width, None
        with initialising(context.streams.seed, "generator"):
            generator = ImageGenerator(config.nz, width, shape[1:], shape[0])
        if path:
            generator = load_generative_network(path, config.nz, shape, ImageGenerator)
        super().__init__(context, config, generator, {"": 1.0})
        self.round, self.reset_round = 0, round(config.reset_l0 * context.rounds)

    def synthesize(self, warmup: bool) -> Batch:
        config, rng = self.config, self.context.streams["synthesis"]
        B, device = config.synthesis_batch_size, self.context.compute.device
        self.round += 1
        if self.round == self.reset_round:
            self.reset_first_layers()
        self.adapted.load_state_dict(self.generator.state_dict())
        theta, adapted = self.trained(self.generator), self.trained(self.adapted)
        z = self.noise(rng).requires_grad_()
        y = torch.randint(self.context.spec.num_classes, (B,), generator=rng, device=device)
        inner_optimizer = self.adam(self.adapted, config.lr_g, z)
        summed = [torch.zeros_like(parameter) for parameter in adapted]
        best = Best()
        for _ in range(config.g_steps):
            x = self.context.ask(self.adapted, z)  # (B, nz) -> (B, C, H, W)
            loss = self.objective(x, y, adversarial=not warmup)
            loss = self.context.backward(loss, [*adapted, z])
            torch._foreach_add_(summed, [parameter.grad for parameter in adapted])
            inner_optimizer.step()
            best.keep(x, loss)
        self.priors.update_average()
        meta_step(config.meta, self.meta_optimizer, theta, adapted, summed)
        return Batch(best.images)

    @torch.no_grad()
    def reset_first_layers(self) -> None:
        """Weights ~ N(0, 0.02^2), biases 0, as published; the meta step's moments stay."""
        for layer in (self.generator.l1[0], self.generator.conv_blocks[0]):
            layer.weight.normal_(0, 0.02, generator=self.context.streams.common("reset"))
            layer.bias.zero_()

    def finish(self) -> Leaving:
        self.recalibrate()
        content = part(self.generator, self.generator.kind, self.generator.config, self.context.origin)
        remark = f"{LASTING_FILE}: the next task can begin with it (--reuse_path)"
        return Leaving(files={LASTING_FILE: content}, remark=remark)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.round = state["round"]


class Fast(FastMeta):
    """Without meta learning."""

    @dataclass(frozen=True)
    class Config(FastMeta.Config):
        meta: str = knob("none", "plain updating", choices=("none",))
