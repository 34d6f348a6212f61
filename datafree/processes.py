"""Several processes that are one run, started by torchrun: which of them this is, and what they find out together.

Every process makes its share of each synthetic batch into a pool of its own, and learns from its share of each batch of
the student's; batch sizes are of all of them. Each loss is the mean over the whole batch, so

    gradient of what all share (weights)      the mean over processes             average, DistributedDataParallel
    gradient of a process's own (z, images)   divided by their number             average
    statistics of a batch                     of all shares, with their gradient  whole_moments, WholeBatchNorm, mean

Alone, as most runs are, all of this gives back what it is given, and torch.distributed is not loaded.
"""

import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

TIMEOUT = 600  # seconds that a process waits for the others; chosen by us
# Of each launcher: how many processes it has started, and which of them this is. Without the latter a size says
# nothing: WORLD_SIZE is set by hand, SLURM_NTASKS for a whole allocation.
LAUNCHERS = (
    ("WORLD_SIZE", "RANK"),  # torchrun, accelerate, deepspeed
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # mpirun of Open MPI
    ("PMI_SIZE", "PMI_RANK"),  # of MPICH and Intel
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # of MVAPICH
)
SLURM_ALLOCATION = ("SLURM_NTASKS", "SLURM_PROCID")
OF_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT")  # where its processes meet
FAILED = "datafree/failed"  # in their common store: which process has said what went wrong

_rank, _size, _store = 0, 1, None


def rank() -> int:
    """Of this process, from 0."""
    return _rank


def size() -> int:
    """How many there are."""
    return _size


def first() -> bool:
    """Whether this is the one that writes files and speaks."""
    return _rank == 0


def local(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which of the processes on this machine this is, and how many those are."""
    if _size == 1:
        return 0, 1
    return int(environment.get("LOCAL_RANK", _rank)), int(environment.get("LOCAL_WORLD_SIZE", _size))


def started_anew(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started all processes again after one of them failed (--max_restarts)."""
    return _starts(environment) > 0


def _starts(environment: Mapping[str, str] = os.environ) -> int:
    return _count(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Finds the other processes, where torchrun started some.

    A batch script of Slurm has SLURM_NTASKS and SLURM_PROCID, too, and is a single process; it is no step.

    Raises:
        UserError: where another launcher started several, or they cannot be found.
    """
    launchers = LAUNCHERS
    batch_script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if "SLURM_STEP_NUM_TASKS" not in environment and not batch_script:
        launchers += (SLURM_ALLOCATION,)
    if _started(*LAUNCHERS[0], environment) and all(name in environment for name in OF_TORCHRUN):
        _meet(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        return
    for size, rank in launchers:
        if _started(size, rank, environment):
            raise UserError(
                f"started as {environment[size]} processes ({size}), which do not know where to meet",
                "start them with torchrun (docs/cluster.md), in Slurm with srun --ntasks-per-node=1 torchrun ...; a "
                "run of one process is started once",
            )


def _started(size: str, rank: str, environment: Mapping[str, str]) -> bool:
    return rank in environment and _count(environment.get(size, "")) > 1


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 1


def _meet(rank: int, size: int) -> None:
    global _rank, _size, _store
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if distributed.is_initialized():
        return
    wait = timedelta(seconds=TIMEOUT)
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=wait))
        _store = distributed.PrefixStore(f"start {_starts()}", store)  # what a former start left there is of no use
        distributed.init_process_group(backends, store=_store, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, ValueError, OSError) as error:  # DistNetworkError and others
        what = f"process {rank} of {size} does not find the others: {str(error).splitlines()[0]}"
        raise UserError(what, "see whether all were started, and MASTER_ADDR and MASTER_PORT can be reached") from None
    _rank, _size = rank, size


def leave() -> None:
    """Lets go of the others, at the end."""
    global _rank, _size, _store
    if _size > 1:
        from torch import distributed

        distributed.destroy_process_group()
        _rank, _size, _store = 0, 1, None


class ProcessLost(UserError):  # noqa: N818 (the house name)
    """Another process has ended, or does not answer."""


@contextmanager
def watched() -> Iterator[None]:
    """Within, what PyTorch says where another process is gone becomes a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        from torch import distributed

        if _size == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        what = f"another of the {_size} processes has ended, or did not answer for {TIMEOUT} s"
        raise ProcessLost(what, "what was saved is whole: the same command with --resume goes on") from None


def first_to_fail() -> bool:
    """Whether none of the others has said what went wrong: one line is enough for all."""
    if _size == 1:
        return True
    try:
        return _store.compare_set(FAILED, "", str(_rank)) == str(_rank).encode()
    except RuntimeError:  # the store is gone, with whoever kept it
        return True


# What is shared out ---------------------------------------------------------------------------------------------------


def share(count: int, name: str) -> int:
    """This process's part of a batch. Raises UserError where there are no equal parts."""
    if count % _size:
        raise UserError(f"--{name} {count} is of all {_size} processes, which cannot share it", "give a multiple")
    return count // _size


# What is found out together: plain values ----------------------------------------------------------------------------


def agreed(value: Any) -> Any:
    """The first process's value, in all of them; what can be pickled."""
    if _size == 1:
        return value
    from torch import distributed

    sent = torch.frombuffer(bytearray(pickle.dumps(value) if first() else b"\0"), dtype=torch.uint8)
    length = torch.tensor(len(sent))
    distributed.broadcast(length, 0)
    sent = sent if first() else torch.empty(int(length), dtype=torch.uint8)
    distributed.broadcast(sent, 0)
    return pickle.loads(sent.numpy().tobytes())


def largest(*values: int) -> tuple[int, ...]:
    """Of each value the largest that any process has."""
    if _size == 1:
        return values
    from torch import distributed

    together = torch.tensor(values)
    distributed.all_reduce(together, distributed.ReduceOp.MAX)
    return tuple(together.tolist())


def total(values: Tensor) -> Tensor:
    """The sum over processes, in place, on whatever device they are."""
    if _size > 1:
        from torch import distributed

        distributed.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Until every process is here."""
    largest(0)


# What is found out together: gradients and statistics -----------------------------------------------------------------


@torch.no_grad()
def average(loss: Tensor, shared: Iterable[Tensor], own: Iterable[Tensor] = ()) -> Tensor:
    """Makes gradients, found in every process from its share of the batch, those of the mean over the whole batch.

    Args:
        loss: a scalar, the mean over this process's share.
        shared: weights that all processes have; those without a gradient have none in any of them.
        own: leaves that only this process has: noise, or images.

    Returns:
        The loss of the whole batch, without a gradient.
    """
    if _size == 1:
        return loss.detach()
    grads = [parameter.grad for parameter in shared if parameter.grad is not None]
    flat = total(torch.cat([loss.view(1), *(grad.reshape(-1) for grad in grads)])).div_(_size)
    mean, *parts = flat.split([1, *(grad.numel() for grad in grads)])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    for leaf in own:
        leaf.grad /= _size
    return mean.view(())


def sharing_gradients(network: nn.Module, x: Tensor) -> nn.Module:
    """The network, called through which its gradients are the mean over processes.

    Args:
        network: on its device. Changed in nothing.
        x: something that it takes, to find out whether all of its weights get a gradient.
    """
    if _size == 1:
        return network
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training = network.training
    found = torch.autograd.grad(network.eval()(x).sum(), weights, allow_unused=True)
    unused = any(gradient is None for gradient in found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a later name of broadcast_buffers
        learning = nn.parallel.DistributedDataParallel(
            network,
            broadcast_buffers=not all(isinstance(norm, WholeBatchNorm) for norm in norms),
            find_unused_parameters=unused,
        )
    if not unused:  # after a first pass it sums gradients in another order: have that behind us, as a resumed run will
        learning(x).sum().backward()
        network.zero_grad()
    return learning.train(training)


class _Gathered(torch.autograd.Function):
    """A tensor of every process, stacked: (...) -> (processes, ...). The gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return total(grad.contiguous())[_rank]


def _gather(x: Tensor) -> Tensor:
    from torch import distributed

    rows = x.new_empty(_size, *x.shape)
    distributed.all_gather(list(rows), x.contiguous())
    return rows


def mean(x: Tensor) -> Tensor:
    """The mean over processes of a mean over each one's share of the batch. Differentiable."""
    return x if _size == 1 else _Gathered.apply(x).mean(0)


def whole_moments(moments: Tensor) -> Tensor:
    """Means, then biased variances (2N,) of the shares -> of the whole batch. Differentiable.

    The variance of all is the mean variance plus the variance of the means.
    """
    return moments if _size == 1 else _merged(_Gathered.apply(moments))


def _merged(rows: Tensor) -> Tensor:
    means, variances = rows.chunk(2, dim=1)
    return torch.cat([means.mean(0), variances.mean(0) + means.var(0, correction=0)])


class _WholeBatchNorm(torch.autograd.Function):
    """x (B, C, ...) normalised by the moments of all shares -> like x, and the moments (2C,)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        unused = torch.zeros_like(weight)  # fp32, which keeps the sums of a bf16 input in fp32: see losses.batchnorm
        moments = _merged(_gather(torch.cat(torch.ops.aten.batch_norm_update_stats(x, unused, unused, 0.0))))
        ctx.save_for_backward(x, weight, moments)
        ctx.eps = eps
        ctx.mark_non_differentiable(moments)
        return torch.native_batch_norm(x, weight, bias, *moments.chunk(2), False, 0.0, eps)[0], moments

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # dL/dx = w/s * (g - mean(g) - x^ * mean(g x^)), x^ = (x - mu)/s: what frozen statistics give, and an affine map
        x, weight, moments = ctx.saved_tensors
        mean, variance = moments.chunk(2)
        frozen = (weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(grad, x, *frozen)
        scale = -weight * (variance + ctx.eps).rsqrt() / (_size * x.numel() / x.shape[1])
        of_x, of_1 = total(torch.cat([dw, db])).chunk(2)
        dx = dx + torch.native_batch_norm(x, scale * of_x, scale * of_1, mean, variance, False, 0.0, ctx.eps)[0]
        return dx, dw, db, None


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """In train mode by the statistics of the whole batch, not of this process's share; for CPU and GPU."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _size == 1:
            return super().forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        ones = torch.ones(x.shape[1], dtype=dtype, device=x.device)
        weight, bias = (ones, 0 * ones) if self.weight is None else (self.weight, self.bias)
        out, moments = _WholeBatchNorm.apply(x, weight, bias, self.eps)
        if self.running_mean is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            n = _size * x.numel() / x.shape[1]
            mean, variance = moments.chunk(2)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (n / (n - 1)), share)
        return out


KINDS = {
    kind: type(f"Whole{kind.__name__}", (WholeBatchNorm, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def see_whole_batch(network: nn.Module) -> None:
    """Lets its BatchNorm layers, those of PyTorch's own classes, work on the batch of all processes from now on."""
    for module in network.modules() if _size > 1 else ():
        module.__class__ = KINDS.get(type(module), type(module))
