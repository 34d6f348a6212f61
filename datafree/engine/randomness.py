"""Random numbers: one independent stream a purpose, so that a part switched off leaves the others' draws alone.

PyTorch's own, global streams are for what draws from them unasked, as dropout does.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .. import processes
from ..errors import UserError

OWN = "@"  # after the name, before the number of the process whose stream it is
HOST = "host/"  # before the name, in a saved state, of a stream that is not on the device


def seed_for(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the run's seed and the purpose's name, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """Named ``torch.Generator`` objects on one device, each made on first use from the run's seed.

    Of several processes each draws its own numbers, but for those that all of them share.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}
        self._host: Streams | None = None

    def __getitem__(self, name: str) -> torch.Generator:
        return self.common(name if processes.size() == 1 else f"{name}{OWN}{processes.rank()}")

    def common(self, name: str) -> torch.Generator:
        """A stream for what every process draws alike, such as weights; alone, the one of that name."""
        if name not in self._generators:
            self._generators[name] = torch.Generator(self.device).manual_seed(seed_for(self.seed, name))
        return self._generators[name]

    def again(self, name: str) -> torch.Generator:
        """A stream at its beginning, whenever asked, in every process: what it decides depends on the seed alone."""
        return torch.Generator(self.device).manual_seed(seed_for(self.seed, name))

    def on_host(self, name: str) -> torch.Generator:
        """A stream for draws that the processor itself reads: of the CPU, whatever the device; there, the same one."""
        return self._of_host[name]

    def drawn_from(self, act: Callable[[], object]) -> list[torch.Generator]:
        """Calls ``act``, and gives the streams on the device that it has drawn from."""
        before = {name: generator.get_state() for name, generator in self._generators.items()}
        act()
        known = self._generators.items()
        return [each for name, each in known if name not in before or not torch.equal(before[name], each.get_state())]

    @property
    def _of_host(self) -> "Streams":
        if self.device.type == "cpu":
            return self
        if self._host is None:
            self._host = Streams(self.seed)
        return self._host

    def state_dict(self) -> dict[str, torch.Tensor]:
        states = {name: generator.get_state() for name, generator in self._generators.items()}
        of_host = self._host.state_dict() if self._host is not None else {}
        return states | {HOST + name: state for name, state in of_host.items()}

    def load_state_dict(self, states: dict[str, torch.Tensor]) -> None:
        """Raises UserError for states of another kind of device."""
        for name, state in states.items():
            host = name.startswith(HOST)
            try:
                (self._of_host if host else self).common(name.removeprefix(HOST)).set_state(state.cpu())
            except RuntimeError:
                raise UserError(
                    f"the run was not begun on a {self.device.type} device: its random numbers cannot go on there",
                    "name the kind of --device that it was begun on",
                ) from None


@contextmanager
def initialising(seed: int, name: str) -> Iterator[None]:
    """Within, global draws (layer initialisation) come from a stream of that name; without, they are untouched."""
    with torch.random.fork_rng(devices=[]):  # layers are made on the CPU; no GPU is woken
        torch.default_generator.manual_seed(seed_for(seed, name))
        yield


def global_states() -> dict[str, Any]:
    """Of PyTorch's own streams: of the CPU, and lists of those of GPUs by kind; no GPU is woken for it."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    for kind in ("cuda", "xpu"):
        gpus = getattr(torch, kind)
        states[kind] = gpus.get_rng_state_all() if gpus.is_initialized() else []
    states["mps"] = [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []
    return states


def set_global_states(states: Mapping[str, Any]) -> None:
    """Puts PyTorch's own streams where they were, those of GPUs where there are as many in use."""
    torch.set_rng_state(states["cpu"])
    for kind in ("cuda", "xpu"):
        gpus, of_gpus = getattr(torch, kind), list(states.get(kind, ()))
        if of_gpus and gpus.is_initialized() and len(of_gpus) == gpus.device_count():
            gpus.set_rng_state_all(of_gpus)
    if torch.backends.mps.is_available():
        for state in states.get("mps", ()):
            torch.mps.set_rng_state(state)


@contextmanager
def global_draws_forgotten() -> Iterator[None]:
    """Afterwards PyTorch's own streams are where they were before."""
    before = global_states()
    try:
        yield
    finally:
        set_global_states(before)
