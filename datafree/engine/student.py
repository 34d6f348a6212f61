"""Distillation steps: the student learns what its targets say of each batch.

for each of kd_steps                            on a GPU, as --step says, recorded once and replayed: recording.py
    batch  <- B images of the pool, uniform with replacement, augmented; or fresh ones of a method without a pool
    lesson <- targets.lesson(batch)                         with the teacher's answer; for ``echo`` steps: echoing.py
    L_S    <- targets.loss(lesson, student)                 soft, hard or under attack: datafree/targets/
    S      <- SGD(lr) or Adam(lr); lr falls along a cosine over all distillation steps, or tenfold at shares of them
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from .. import configuration
from ..configuration import knob
from ..data.batch import Batch, Rows
from ..errors import UserError
from .context import Context
from .device import Compute
from .echoing import Source, Teaching, lessons
from .recording import Graph, Recording
from .sharding import is_shared_out, share_out, states_like, whole
from .whole_batch import agree_on_buffers, shares_gradients


@dataclass(frozen=True)
class OptimiserConfig(configuration.Config):
    """The knobs of one network's optimiser."""

    batch_size: int = knob(256, "images a step", low=1, high=2**16, unit="IMAGES")
    optimizer: str = knob(
        "sgd", "adam and adamw, as transformers want it, with --lr 1e-3 or so", choices=("sgd", "adam", "adamw")
    )
    lr: float = knob(0.2, "learning rate at the start", above=0)
    momentum: float = knob(0.9, "of SGD", low=0, high=0.9999, when={"optimizer": ("sgd",)})
    weight_decay: float = knob(1e-4, "raise it against overfitting", low=0)


def optimiser(
    parameters: Iterable[nn.Parameter], config: OptimiserConfig, nesterov: bool, compute: Compute
) -> torch.optim.Optimizer:
    """What ``config`` asks for; ``nesterov`` is for SGD with a momentum."""
    parameters = list(parameters)
    without_kernels = any(parameter.is_complex() or is_shared_out(parameter) for parameter in parameters)
    fused = compute.fused and not without_kernels
    how = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        nesterov = nesterov and config.momentum > 0
        sgd = torch.optim.SGD(parameters, momentum=config.momentum, nesterov=nesterov, **how)
        if compute.scales and config.momentum > 0:  # a first step that overflows would leave it as memory was
            sgd.state.update({parameter: {"momentum_buffer": torch.zeros_like(parameter)} for parameter in parameters})
        return sgd
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, **how)


def step_decay(done: int, steps: int, shares: Iterable[float]) -> float:
    """What a rate is multiplied by after ``done`` of ``steps`` steps: a tenth for each share of them that is behind."""
    return 0.1 ** sum(done >= round(share * steps) for share in shares)


def _schedule(optimizer: torch.optim.Optimizer, config: "Student.Config", steps: int) -> LRScheduler:
    if config.lr_steps:
        return LambdaLR(optimizer, lambda done: step_decay(done, steps, config.lr_steps))
    return CosineAnnealingLR(optimizer, steps, config.lr_min)


class Objective(nn.Module):
    """The loss of a step, from what was drawn; a module so that all of it can be compiled at once."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context

    def __call__(self, *given: Any) -> torch.Tensor:
        with self.context.aside() as left:  # compiled code is for lists of one length
            loss = super().__call__(*given)
        self.context.take_in(left)
        return loss

    def forward(self, rows: Rows, make: Callable[[Rows], Batch], targets: Teaching, student: nn.Module) -> torch.Tensor:
        return targets.loss(make(rows), student)


class Student:
    """The network being distilled, with its optimiser and schedule.

    Args:
        context: its ``student`` is trained in place, by several processes from the mean of their gradients.
        config: the knobs.
        steps: all distillation steps of the run: the schedule's length.
        new_graph: makes what a step is recorded in; None: steps are not recorded.
        shard: whether several processes share it out, see ``sharding``.

    Attributes:
        say: takes the line that says so where a step cannot be recorded after all.
    """

    @dataclass(frozen=True)
    class Config(OptimiserConfig):
        lr_min: float = knob(
            2e-4, "learning rate that the cosine ends at; as --lr: a constant rate", low=0, when={"lr_steps": (None,)}
        )
        lr_steps: tuple[float, ...] | None = knob(
            None, "divide lr by 10 at these shares of the run, in place of the cosine", above=0, high=1, unit="SHARE"
        )
        nesterov: bool = knob(False, "Nesterov's momentum in SGD", when={"optimizer": ("sgd",)})
        echo: int = knob(
            1, "steps that an image drawn, cropped and shown to the teacher serves; 3 is faster", low=1, unit="STEPS"
        )
        clip_grad: float = knob(0.0, "largest norm of the gradient; 0: any", low=0, unit="NORM")

        def check(self) -> None:
            if not self.lr_steps and self.lr_min > self.lr:
                raise UserError(f"--lr_min {self.lr_min} is above --lr {self.lr}", "the cosine falls: lower --lr_min")

    def __init__(
        self,
        context: Context,
        config: "Student.Config",
        steps: int,
        new_graph: Callable[[], Graph] | None = None,
        shard: bool = False,
    ):
        self.context, self.config, self.classifier = context, config, context.student
        if shard:
            share_out(self.classifier, context.compute.device)
            self.learning = self.classifier
        else:
            self.learning = shares_gradients(self.classifier, context.spec.shape, context.compute.device)
        self.scaler = context.scaler
        self.optimizer = optimiser(self.classifier.parameters(), config, config.nesterov, context.compute)
        self.scheduler = _schedule(self.optimizer, config, max(1, steps))
        self.objective = Objective(context)
        fused = self.optimizer.defaults["fused"]  # others read the rate, which a graph cannot
        self.new_graph, self.say = new_graph if fused else None, partial(print, file=sys.stderr)
        self._recorded: dict[Any, Recording] = {}

    @property
    def recordings(self) -> list[Recording]:
        """Of the steps that were made so far, one a pool and targets."""
        return list(self._recorded.values())

    @property
    def lr(self) -> float:
        """Of the next step."""
        return self.scheduler.get_last_lr()[0]

    def learn(self, source: Source, targets: Teaching, steps: int) -> None:
        """That many steps."""
        self.classifier.train()
        config = self.config
        rng = self.context.streams["echo"] if config.echo > 1 else None
        drawn, make = lessons(source, targets, steps, config.batch_size, config.echo, rng)
        act = partial(self._step, make, targets)
        step = act if self.new_graph is None else self._recording_of(act, (make, targets))
        for rows in drawn:
            step(rows)
            self.scheduler.step()
        agree_on_buffers(self.classifier)

    def _recording_of(self, act: Callable[[Rows], None], about: Any) -> Recording:
        """Of a step that is the same wherever ``about`` is."""
        if about not in self._recorded:
            self._recorded[about] = Recording(self.context, self.optimizer, self.new_graph(), act, self.say)
        return self._recorded[about]

    def _step(self, make: Callable[[Rows], Batch], targets: Teaching, rows: Rows) -> None:
        """All of one but for what chance decides, which is in the rows, and for the schedule."""
        loss = self.objective(rows, make, targets, self.learning)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.classifier.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the random streams apart."""
        return {
            "student": self.classifier.state_dict(),
            "optimizer": whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["student"])
        states = states_like(state["optimizer"]["state"], list(self.classifier.parameters()))
        self.optimizer.load_state_dict(state["optimizer"] | {"state": states})
        self.scheduler.load_state_dict(state["scheduler"])
        self._recorded.clear()  # of tensors that the optimiser no longer has
