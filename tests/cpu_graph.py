"""What a CUDA graph does, on the CPU: it sees operations, not Python, and does them again on the same memory.

As on a GPU a recording computes nothing: tensors and random streams that were there before are as they were, those made
in it hold no numbers until the first replay, and reading a number ends it.
"""

import math
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class CpuGraph:
    """Attributes: how many steps warmed it up, how often it was recorded and replayed, what it draws from."""

    def __init__(self):
        self.warmed = self.recordings = self.replays = 0
        self.streams, self.operations = [], []

    @contextmanager
    def warming_up(self):
        self.warmed += 1
        yield

    def record(self, act, streams):
        self.recordings += 1
        self.streams, states = list(streams), [stream.get_state() for stream in streams]
        own, seen = torch.get_rng_state(), Seen(self.streams)
        try:
            with seen:
                act()
        finally:
            for storage, content in seen.before.values():
                storage.copy_(content)
            for stream, state in zip(streams, states, strict=True):
                stream.set_state(state)
            torch.set_rng_state(own)
        for _, _, _, fresh in seen.operations:
            for tensor in fresh:
                if tensor is not None and tensor.is_floating_point():
                    with torch.no_grad():
                        tensor.fill_(math.nan)
        self.operations = seen.operations

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for operator, args, kwargs, fresh in self.operations:
            for tensor, value in zip(fresh, tree_leaves(operator(*args, **kwargs)), strict=True):
                if tensor is not None:
                    tensor.copy_(value)


class Seen(TorchDispatchMode):
    """Attributes: operations, with what they are given and their results, None where these are no new memory; and what
    was in the memory that there was before."""

    def __init__(self, streams):
        super().__init__()
        self.streams = {stream._cdata for stream in streams}  # by where they are: PyTorch wraps them anew
        self.operations, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        stream = kwargs.get("generator")
        if operator.name() in READING or not (stream is None or stream._cdata in self.streams):
            raise RuntimeError("operation not permitted when stream is capturing\nand more about it")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and memory(tensor) not in self.made:
                storage = tensor.untyped_storage()
                self.before.setdefault(memory(tensor), (storage, storage.clone()))
        results = operator(*args, **kwargs)
        known = self.made | self.before.keys()
        fresh = [
            each if isinstance(each, Tensor) and memory(each) not in known else None for each in tree_leaves(results)
        ]
        self.made |= {memory(each) for each in fresh if each is not None}
        self.operations.append((operator, args, kwargs, fresh))
        return results


def memory(tensor):
    """Which it is, as long as it lives."""
    return tensor.untyped_storage()._cdata
