"""NAYER: images of given labels, made different from each other by a noisy layer (Tran et al., CVPR 2024).

x = G(y) = g(W_b e~_y + c_b): see models/label_generator.py;  a round:
    every g_life rounds: G is drawn anew
    for each of ``loops`` (in warm-up ``warmup_loops``)
        W ~ N(0, 1), c = 0;  y <- 0..C-1, again and again
        for k = 1..K
            x <- G(y);  x~ <- augment(x)
            L =  bn * L_bn(x~) + oh * L_oh(x~, y) + adv * L_adv(x~)   L_adv not in warm-up; without BN other priors
            G, noisy layers included <- Adam(lr_g), which is new each loop
            remember the x of the lowest L
        the best x goes to the pool
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import knob
from ..data.batch import Batch
from ..engine.context import Context
from ..engine.randomness import initialising
from ..models.generator import draw_anew
from ..models.label_generator import LabelGenerator, load_embeddings
from .inversion import Best, Inversion, LossConfig


class Nayer(Inversion):
    """See the top of the file. Draws from the streams "synthesis", "sample", "reset" and "embedding"."""

    @dataclass(frozen=True)
    class Config(LossConfig):
        embedding: str = knob(
            "onehot",
            "what stands for a class: onehot, random, or a file of an array (classes, d), such as embedded class names",
            unit="onehot|random|FILE",
        )
        embedding_size: int = knob(
            512, "of random embeddings", low=1, high=2**16, unit="N", when={"embedding": ("random",)}
        )
        synthesis_batch_size: int = knob(400, "images made a loop", low=2, high=2**16, unit="IMAGES")
        loops: int = knob(2, "batches made a round", low=1, high=2**10, unit="N")
        warmup_loops: int = knob(10, "batches made a round of warm-up", low=1, high=2**10, unit="N")
        g_steps: int = knob(30, "generator iterations a batch; more give better images, slower", low=1, unit="K")
        g_life: int = knob(10, "rounds until the generator is drawn anew; 0: never", low=0, unit="ROUNDS")
        noise_width: int = knob(1000, "of what the noisy layers give", low=1, high=2**16, unit="N")
        ngf: int = knob(64, "width of the generator; lower is faster", low=1, high=2**16, unit="CHANNELS")
        lr_g: float = knob(4e-3, "learning rate of the generator", above=0)
        adam_betas: tuple[float, float] = knob((0.5, 0.999), "of Adam", low=0, high=0.9999, unit="BETA")

    def __init__(self, context: Context, config: "Nayer.Config"):
        super().__init__(context, config)
        (channels, *size), batch = context.spec.shape, config.synthesis_batch_size
        with initialising(context.streams.seed, "generator"):
            generator = LabelGenerator(self._embeddings(), batch, config.noise_width, config.ngf, tuple(size), channels)
        self.generator, self.round = context.compute.place(generator).train(), 0

    def _embeddings(self) -> Tensor:
        """(C, d). Of a run that goes on those that it began with: the file may be gone."""
        context, kind, classes = self.context, self.config.embedding, self.context.spec.num_classes
        if kind == "onehot":
            return torch.eye(classes)
        if kind == "random":
            rng = context.streams.again("embedding")
            return torch.randn(classes, self.config.embedding_size, generator=rng, device=rng.device)
        saved = (context.saved() or {}).get("generator", {}).get("embeddings")
        return load_embeddings(Path(kind).expanduser(), classes) if saved is None else saved

    @property
    def images_a_round(self) -> int:
        return self.config.synthesis_batch_size * max(self.config.loops, self.config.warmup_loops)

    def images_in(self, rounds: int, warmup: int) -> int:
        loops = warmup * self.config.warmup_loops + (rounds - warmup) * self.config.loops
        return self.config.synthesis_batch_size * loops

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def synthesize(self, warmup: bool) -> Batch:
        config = self.config
        if self.round and config.g_life and self.round % config.g_life == 0:
            draw_anew(self.generator, self.context.streams.common("reset"))
        self.round += 1
        loops = config.warmup_loops if warmup else config.loops
        return Batch(torch.cat([self.invert(adversarial=not warmup) for _ in range(loops)]))

    def invert(self, adversarial: bool) -> Tensor:
        """One loop: the best images (B, C, H, W) of new noisy layers."""
        config, rng = self.config, self.context.streams["synthesis"]
        self.generator.draw_noise(rng)
        y, parameters, best = self.labels(rng), list(self.generator.parameters()), Best()
        how = {"lr": config.lr_g, "betas": config.adam_betas, "fused": self.context.compute.fused}
        optimizer = torch.optim.Adam(parameters, **how)
        for _ in range(config.g_steps):
            x = self.context.ask(self.generator, y)  # (B,) -> (B, C, H, W)
            loss = self.objective(x, y, adversarial)
            loss = self.context.backward(loss, parameters, own=self.generator.noisy)
            optimizer.step()
            best.keep(x, loss)
        self.priors.update_average()
        return best.images

    def labels(self, rng: torch.Generator) -> Tensor:
        """(B,): 0..C-1 as often as it fits, then as many different ones as are missing."""
        classes, B = self.context.spec.num_classes, self.config.synthesis_batch_size
        whole = torch.arange(classes, device=rng.device).repeat(B // classes)
        return torch.cat([whole, torch.randperm(classes, generator=rng, device=rng.device)[: B % classes]])

    @torch.no_grad()
    def sample(self, count: int, stream: str = "sample") -> Tensor:
        """Of noisy layers that nothing has trained, on the statistics of their batch: what a loop begins with."""
        generator, rng = copy.deepcopy(self.generator), self.context.streams[stream]
        batches = []
        for _ in range(-(-count // self.config.synthesis_batch_size)):
            generator.draw_noise(rng)
            batches.append(self.context.ask(generator, self.labels(rng)))
        return torch.cat(batches)[:count]

    def state_dict(self) -> dict[str, Any]:
        """Without the noisy layers: each loop draws its own."""
        lasting = {k: value for k, value in self.generator.state_dict().items() if not k.startswith("noisy")}
        return {"generator": lasting, "priors": self.priors.state_dict(), "round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"], strict=False)
        self.priors.load_state_dict(state["priors"])
        self.round = state["round"]
