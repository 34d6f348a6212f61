"""Random numbers: one independent stream a purpose, so that a part switched off leaves the others' draws alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import UserError


def seed_for(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the run's seed and the purpose's name, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """Named ``torch.Generator`` objects on one device, each made on first use from the run's seed."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._generators:
            self._generators[name] = torch.Generator(self.device).manual_seed(seed_for(self.seed, name))
        return self._generators[name]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, states: dict[str, torch.Tensor]) -> None:
        """Raises UserError for states of another kind of device."""
        for name, state in states.items():
            try:
                self[name].set_state(state.cpu())
            except RuntimeError:
                raise UserError(
                    f"the run was not begun on a {self.device.type} device: its random numbers cannot go on there",
                    "name the kind of --device that it was begun on",
                ) from None


@contextmanager
def initialising(seed: int, name: str) -> Iterator[None]:
    """Within, global draws (layer initialisation) come from a stream of that name; without, they are untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, name))
        yield
