"""Several processes that are one run, started by torchrun: which of them this is, and what they find out together.

Every process makes its share of each synthetic batch into a pool of its own, and learns from its share of each batch of
the student's; batch sizes are of all of them. Each loss is the mean over the whole batch, so

    gradient of what all share (weights)      the mean over processes             average
    gradient of a process's own (z, images)   divided by their number             average
    statistics of a batch                     of all shares, with their gradient  whole_moments, mean

Networks that live by it are in engine/whole_batch.py. Alone, as most runs are, all of this gives back what it is given,
and nothing of torch.distributed is called, but for the store in which torchrun's one process finds that it had begun.
"""

import os
import pickle
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

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
ELASTIC = "TORCHELASTIC_RUN_ID"  # torchrun's, which starts again what has failed
OF_TORCHRUN = (*LAUNCHERS[0], "MASTER_ADDR", "MASTER_PORT")  # the latter: where its processes meet
# In their common store: which has said what went wrong; what a later start has to know; how a start gets its name.
FAILED, BEGUN, STOPPED, MEETING = (f"datafree/{name}" for name in ("failed", "begun", "stopped", "meeting"))
MOMENT = 0.01  # seconds between looks at it

_rank, _size, _anew = 0, 1, False
_store, _all_starts = None, None  # of this start; of all that torchrun makes


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


def starter(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The words that start so many processes on so many machines, as they stand before the program's name."""
    here = local(environment)[1]
    if _size == 1:
        return ["python"]
    address = environment.get("MASTER_ADDR", "HOST")
    several = [f"--nnodes={_size // here}", "--rdzv_backend=c10d", f"--rdzv_endpoint={address}"] * (_size > here)
    return ["torchrun", *several, f"--nproc_per_node={here}"]


def started_anew() -> bool:
    """Whether torchrun has started all processes again, after one of them failed, in a run that had begun."""
    return _anew


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
    elastic = ELASTIC in environment  # one process, too, may be started again then, or get company
    if environment.keys() >= {*OF_TORCHRUN} and (elastic or _started(*LAUNCHERS[0], environment)):
        _meet(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
        return
    for count, number in launchers:
        if _started(count, number, environment):
            raise UserError(
                f"started as {environment[count]} processes ({count}), which do not know where to meet",
                "start them with torchrun (docs/cluster.md), in Slurm with srun --ntasks-per-node=1 torchrun ...; a "
                "run of one process is started once",
            )


def _started(count: str, number: str, environment: Mapping[str, str]) -> bool:
    return number in environment and _count(environment.get(count, "")) > 1


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 1


def _meet(rank: int, size: int) -> None:
    global _rank, _size, _anew, _store, _all_starts
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if _all_starts is not None:
        return
    wait = timedelta(seconds=TIMEOUT)
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        starts, _, _ = next(rendezvous("env://", rank, size, timeout=wait))
        if size > 1:
            _store = distributed.PrefixStore(_this_start(starts, rank, size), starts)
            distributed.init_process_group(backends, store=_store, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, ValueError, OSError) as error:  # DistNetworkError and others
        what = f"process {rank} of {size} does not find the others: {str(error).splitlines()[0]}"
        raise UserError(what, "see whether all were started, and MASTER_ADDR and MASTER_PORT can be reached") from None
    _rank, _size, _all_starts = rank, size, starts
    _anew, had_to_stop = agreed([rank == 0 and _all_starts.check([key]) for key in (BEGUN, STOPPED)])
    if had_to_stop:
        raise UserError("the run was asked to stop, and has saved", "go on with --resume, in another job")


def _this_start(store: Any, rank: int, size: int) -> str:
    """A name that the processes of this start have in common, and those of no other.

    torchrun keeps one store for all of its starts, in which old processes have left where they could be reached, and
    counts starts by node. So the first process names the start, and each other one answers until it is answered itself.
    """
    me, since = uuid4().hex, time.monotonic()

    def said(key: str) -> str:
        if time.monotonic() - since > TIMEOUT:
            raise RuntimeError(f"waited {TIMEOUT} s for {key}")
        time.sleep(MOMENT)
        return store.get(f"{MEETING}/{key}").decode() if store.check([f"{MEETING}/{key}"]) else ""

    if rank == 0:
        store.set(f"{MEETING}/start", me)
        for other in range(1, size):
            while not (answer := said(f"process {other}")).startswith(me):
                pass
            store.set(f"{MEETING}/welcome, {other}", answer)
        return me
    start = ""
    while not start or said(f"welcome, {rank}") != start + me:
        start = said("start")
        store.set(f"{MEETING}/process {rank}", start + me)
    return start


def begun() -> None:
    """Notes that the run has its folder: should torchrun start all of them again, they go on with it."""
    _note(BEGUN)


def stopped() -> None:
    """Notes that the run has saved and leaves because it was asked to: it is not to be started again."""
    wait_for_all()
    _note(STOPPED)


def _note(key: str) -> None:
    if _all_starts is not None and first():
        _all_starts.set(key, "1")


def leave() -> None:
    """Lets go of the others, at the end."""
    global _rank, _size, _anew, _store, _all_starts
    if _size > 1:
        from torch import distributed

        time.sleep(MOMENT)  # lets PyTorch's threads end: 2.6 was seen to wait below for good, for the GIL perhaps
        distributed.destroy_process_group()
    _rank, _size, _anew, _store, _all_starts = 0, 1, False, None, None


class ProcessLost(UserError):  # noqa: N818 (the house name)
    """Another process has ended, or does not answer."""


@contextmanager
def watched() -> Iterator[None]:
    """Within, what PyTorch says where another process is gone becomes a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        what = f"another of the {_size} processes has ended, or did not answer for {TIMEOUT} s"
        raise ProcessLost(what, "what was saved is whole: the same command with --resume goes on") from None


def is_loss(error: BaseException) -> bool:
    """Whether PyTorch says so that another process is gone."""
    if _size == 1:
        return False
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def first_to_fail() -> bool:
    """Whether none of the others has said what went wrong: one line is enough for all."""
    if _size == 1:
        return True
    try:
        return _store.compare_set(FAILED, "", str(_rank)) == str(_rank).encode()
    except RuntimeError:  # the store is gone, with whoever kept it
        return True


def share(count: int, name: str) -> int:
    """This process's part of a batch, or of another number of images. Raises UserError where a batch has none."""
    if count % _size and name.endswith("batch_size"):
        raise UserError(f"--{name} {count} is of all {_size} processes, which cannot share it", "give a multiple")
    return max(1, count // _size)


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


def check_same(value: Any, what: str) -> None:
    """Raises UserError where not all processes have the same value, which is told apart by its text."""
    number = zlib.crc32(repr(value).encode())
    most, least = largest(number, -number)
    if most != -least:
        raise UserError(f"the {_size} processes have different {what}", "let all of them see the same files")


def total(values: Tensor) -> Tensor:
    """The sum over processes, in place, on whatever device they are."""
    if _size > 1:
        from torch import distributed

        distributed.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Until every process is here."""
    largest(0)


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


class _Gathered(torch.autograd.Function):
    """A tensor of every process, stacked: (...) -> (processes, ...). The gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return total(grad.contiguous())[_rank]


def gather(x: Tensor) -> Tensor:
    """Of every process: (...) -> (processes, ...), without a gradient."""
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
    return moments if _size == 1 else merged(_Gathered.apply(moments))


def merged(rows: Tensor) -> Tensor:
    """What :func:`whole_moments` does, of the moments of all shares (processes, 2N)."""
    means, variances = rows.chunk(2, dim=1)
    return torch.cat([means.mean(0), variances.mean(0) + means.var(0, correction=0)])
