"""A distillation step as one CUDA graph: its kernels are recorded once, and from then on started together.

for each step
    the first WARM_UP                as it is: kernels are chosen, networks compiled, the optimiser gets its state
    the next                         record act(static), which computes nothing; as it is
    the next that moves weights      compare a replay with act, from the same state without momentum: unless both lead
                                     to the same weights, steps go on as they are
    from then on                     static <- rows;  rate <- the optimiser's;  replay

Where kernels are short it is starting them, one by one, that takes the time. Python runs at the recording alone: what
was reported and counted then is repeated at every replay, and what changes from step to step is a tensor that kernels
read: rows, rate, the states of random streams. What cannot be recorded runs as it is, and one line says so.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import processes
from ..data.batch import Rows
from ..errors import first_line
from .context import Context, Left
from .device import Compute
from .randomness import global_draws_forgotten

WARM_UP = 3  # steps; chosen by us
# Largest distance between what a replay changes and what the step itself does, over the latter. Kernels add up in
# another order, and Adam makes full steps of gradients that are rounding; chosen by us.
APART = 0.25
MOMENTUM = {"momentum_buffer", "exp_avg"}  # in the state of PyTorch's optimisers
UP_TO = 64  # pixels a side: such steps are recorded unasked; with larger images a GPU is busy anyway; chosen by us


class Graph(Protocol):
    """Something that can do again what it has seen done."""

    def warming_up(self) -> AbstractContextManager[None]: ...

    def record(self, act: Callable[[], None], streams: Sequence[torch.Generator]) -> None: ...

    def replay(self) -> None: ...


class CudaGraph:
    """PyTorch's, on a GPU. Warming up and recording share a stream of its, as PyTorch wants it."""

    def __init__(self, device: torch.device):
        self.device = device
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Within, work goes to the stream of the recording, behind what was given to do before."""
        now = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            yield
        now.wait_stream(self._stream)

    def record(self, act: Callable[[], None], streams: Sequence[torch.Generator]) -> None:
        """What ``act`` does, drawing from these random streams, and from PyTorch's own.

        Raises:
            RuntimeError: where it waits for the GPU, or cannot be recorded for another reason.
        """
        for stream in streams:
            self._graph.register_generator_state(stream)
        try:
            now = torch.cuda.stream(torch.cuda.current_stream(self.device))  # where a failure would not put us back to
            # other threads may go on: that of a pool in host memory sets memory aside meanwhile
            how = {"stream": self._stream, "capture_error_mode": "thread_local"}
            with now, torch.cuda.graph(self._graph, **how):
                act()
        except RuntimeError:
            of_pytorch = torch.cuda.default_generators[self.device.index]
            for stream in (*streams, of_pytorch):  # some versions leave them waiting for the recording's end
                stream.graphsafe_set_state(stream.clone_state())
            raise

    def replay(self) -> None:
        """All of it, behind what was given to do before; streams go on by as much as they were drawn from."""
        self._graph.replay()


class Recording:
    """A step that is recorded once it has warmed up.

    Args:
        context: whose reports and costs the step leaves, and whose streams it draws from.
        optimizer: that the step ends with; of one group.
        graph: an empty one.
        act: the step: takes rows on the device, and reads no number.
        say: takes the line that says so where it cannot be recorded after all.
    """

    def __init__(
        self,
        context: Context,
        optimizer: torch.optim.Optimizer,
        graph: Graph,
        act: Callable[[Rows], None],
        say: Callable[[str], object],
    ):
        self.context, self.optimizer, self.graph, self.act, self.say = context, optimizer, graph, act, say
        self.warm, self.recorded, self.checked, self.failed = 0, False, False, False
        self._static: Rows = {}
        self._rate = torch.empty((), device=context.compute.device)
        self._streams: list[torch.Generator] = []  # that the step draws from

    def __call__(self, rows: Rows) -> None:
        """One step on these rows."""
        if self.warm < WARM_UP:
            self.warm += 1
            with self.graph.warming_up():
                self._streams = self.context.streams.drawn_from(partial(self._step, rows))
            return
        if not (self.recorded or self.failed):
            self._record(rows)
        elif not (self.checked or self.failed):
            self._check(rows)
        if self.checked and _form(rows) == _form(self._static):
            self._replay(rows)
        else:
            self._step(rows)

    def _step(self, rows: Rows) -> None:
        """As it is, but for the rate, which it reads where a replay does, so that it is the same step."""
        self._set_rate()
        with recordable(self.optimizer, self._rate):
            self.act(rows)

    def _set_rate(self) -> None:
        (group,) = self.optimizer.param_groups
        self._rate.fill_(group["lr"])

    def _record(self, rows: Rows) -> None:
        self._static = {name: values.clone() for name, values in rows.items()}
        try:
            with self.context.aside() as self._left, recordable(self.optimizer, self._rate):
                self.graph.record(partial(self.act, self._static), self._streams)
            self.recorded = True
        except RuntimeError as error:
            self._give_up(first_line(error))

    def _check(self, rows: Rows) -> None:
        """With other rows than those of the recording: what it has kept of them is found out."""
        if _form(rows) != _form(self._static):
            return
        try:
            apart = self._apart(rows)
        except RuntimeError as error:
            self._give_up(first_line(error))
            return
        self.checked = apart is not None and apart <= APART
        if apart is not None and not self.checked:
            self._give_up(f"a replay changes weights otherwise than the step itself, by {apart:.0%} of that")

    def _give_up(self, why: str) -> None:
        self.recorded, self.failed = False, True
        self.graph, self._static, self._left = None, {}, None
        self.say(f"warning: steps are not recorded, which is slower and else the same: {why}")

    def _apart(self, rows: Rows) -> float | None:
        """How far from where the step itself leads a replay leads, in weights and statistics; all is as it was then.

        None where the step moves no weight, as after an overflow in fp16.
        """
        weights = [value for value in self.context.student.parameters() if value.is_floating_point()]
        norms = [value for value in self.context.student.buffers() if value.is_floating_point()]
        tensors, states = self._changing(), [stream.get_state() for stream in self._streams]
        kept = [tensor.detach().clone() for tensor in tensors]

        def led_to(step: Callable[[Rows], None]) -> tuple[Tensor, Tensor]:
            for state in self.optimizer.state.values():
                for name in MOMENTUM & state.keys():  # what a step itself adds is little beside it
                    if state[name] is not None:
                        state[name].zero_()
            try:
                with self.context.aside(), global_draws_forgotten():
                    step(rows)
                return _flat(weights), _flat(norms)
            finally:
                with torch.no_grad():
                    for tensor, before in zip(tensors, kept, strict=True):
                        tensor.copy_(before)
                for stream, state in zip(self._streams, states, strict=True):
                    stream.set_state(state)

        start = _flat(weights), _flat(norms)
        by_step, by_replay = led_to(self._step), led_to(self._replay)
        if torch.equal(by_step[0], start[0]):
            return None
        return max(_distance(*each) for each in zip(start, by_step, by_replay, strict=True))

    def _changing(self) -> list[Tensor]:
        """What a step writes to: student, optimiser, scale of the loss."""
        student, states = self.context.student, self.optimizer.state.values()
        of_optimizer = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*student.parameters(), *student.buffers(), *of_optimizer, *self.context.scaler.tensors()]

    def _replay(self, rows: Rows) -> None:
        for name, values in rows.items():
            self._static[name].copy_(values, non_blocking=True)
        self._set_rate()
        self.graph.replay()
        self.context.take_in(Left(self._left.readings.copied(), self._left.counts))


@contextmanager
def recordable(optimizer: torch.optim.Optimizer, rate: Tensor) -> Iterator[None]:
    """Within, a step reads its learning rate from ``rate`` whenever it is replayed; afterwards all is as it was."""
    kept: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        changed = {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
        kept.append({name: group[name] for name in changed})
        group.update(changed)
    try:
        yield
    finally:
        for group, before in zip(optimizer.param_groups, kept, strict=True):
            group.update(before)


def _flat(values: Sequence[Tensor]) -> Tensor:
    flat = [value.detach().flatten().float() for value in values]
    return torch.cat(flat) if flat else torch.zeros(0)


def _distance(start: Tensor, by_step: Tensor, by_replay: Tensor) -> float:
    """Between two ends, over the way from the start to the first; infinite or NaN for what is neither."""
    if torch.equal(by_step, by_replay):
        return 0.0
    return float((by_replay - by_step).norm() / (by_step - start).norm())


def _form(rows: Rows) -> dict[str, Any]:
    return {name: (values.shape, values.dtype) for name, values in rows.items()}


def obstacle_to_recording(compute: Compute) -> str:
    """Why no step can be recorded, in words; empty where nothing is known to be in the way."""
    if compute.device.type != "cuda":
        return f"CUDA graphs are not for {compute.device.type}"
    if processes.size() > 1:
        return "gradients of several processes are summed on the way"
    return ""
