"""A student shared out over the processes, for one that does not fit into one of them (PyTorch's FSDP2; ``--shard``).

    at rest               each process has its rows of every weight, of its gradient and of the optimiser's state
    forward, backward     a block's weights are gathered, used and let go again; gradients are means over processes
    state_dict            whole, in every process, as if nothing were shared out; load_state_dict takes it so

Whoever asks for a state asks in all processes. BatchNorm's statistics are no weights: every process has them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import processes
from ..errors import UserError, first_line

REFUSALS = (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError)  # of PyTorch, for a network


def share_out(network: nn.Module, device: torch.device) -> None:
    """In place, block by block. Raises UserError for a PyTorch without FSDP2, or a network that it does not take."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UserError(
            "--shard takes FSDP2, which this PyTorch lacks", "install 2.6 or newer, or leave it out"
        ) from None
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise UserError("FSDP2 of this PyTorch is for GPUs alone", "install 2.7 or newer, or leave --shard out")
    mesh = init_device_mesh(device.type, (processes.size(),))
    network.to(memory_format=torch.contiguous_format)  # rows are shared out, whose order in memory is this one
    try:
        for part in (*blocks(network), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    except REFUSALS as error:
        raise UserError(f"the student cannot be shared out: {first_line(error)}", "leave --shard out") from None
    for module in network.modules():
        module.register_state_dict_post_hook(_gather)
        module.register_load_state_dict_pre_hook(_share_out)


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the items of its sequences that have parts of their own, as a ResNet's blocks."""
    found, in_sequence = [], isinstance(network, nn.Sequential | nn.ModuleList)
    for part in network.children():
        plain = not isinstance(part, nn.Sequential | nn.ModuleList)
        found += [part] if in_sequence and plain and any(True for _ in part.children()) else blocks(part)
    return found


def is_shared_out(value: Any) -> bool:
    """Whether a tensor is one of which every process has a part."""
    return hasattr(value, "full_tensor")


def whole(state: Any) -> Any:
    """A state with all of every tensor; in all processes."""
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    return state.full_tensor() if is_shared_out(state) else state


def like(values: Tensor, shared_out: Tensor) -> Tensor:
    """All of a tensor (alike in all processes) -> shared out as another of its shape is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values.to(shared_out.device), shared_out.device_mesh, shared_out.placements)


def states_like(states: Mapping[int, Mapping[str, Any]], weights: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """An optimiser's, by the number of the weight: what has a weight's shape is shared out as the weight is."""

    def placed(value: Any, weight: Tensor) -> Any:
        fits = isinstance(value, Tensor) and is_shared_out(weight) and value.shape == weight.shape
        return like(value, weight) if fits else value

    return {
        number: {name: placed(value, weights[number]) for name, value in state.items()}
        for number, state in states.items()
    }


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Within, every process has all weights, so that each may ask the network as often as it likes."""
    parts = [module for module in network.modules() if hasattr(module, "set_reshard_after_forward")]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _gather(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in module._parameters:
        if is_shared_out(state.get(prefix + name)):
            state[prefix + name] = state[prefix + name].full_tensor()


def _share_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, weight in module._parameters.items():
        given = state.get(prefix + name)
        if isinstance(given, Tensor) and is_shared_out(weight) and given.shape == weight.shape:
            state[prefix + name] = like(given, weight)
