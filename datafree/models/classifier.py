"""A network that carries its own input format: pixels in, logits out, whatever it was trained on.

logits = S(x),   x (B, C, H, W) in [0, 1] -> resized to S's size -> (x - S's mean) / S's std -> (B, classes)
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.specs import Size, pair, size_text
from ..errors import UserError, first_line
from .answers import Picked, candidates, logits_of, pick

M = TypeVar("M", bound=nn.Module)


class ExactLinear(nn.Linear):
    """In its weight's precision also under autocast: logits of 16 bits tie, and argmax then takes the lower class."""

    def forward(self, input: Tensor) -> Tensor:  # named as nn.Linear's: some call it by keyword
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class ExactConv2d(nn.Conv2d):
    """The same of a 1x1 convolution that gives the logits."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return self._conv_forward(input.to(self.weight.dtype), self.weight, self.bias)


EXACT: dict[type, type] = {nn.Linear: ExactLinear, nn.Conv2d: ExactConv2d}


def make_ordinary(network: nn.Module) -> None:
    """Turns the exact layers in a network back into what they were."""
    for module in network.modules():
        if type(module) in EXACT.values():
            module.__class__ = type(module).__base__


def is_lazy(network: nn.Module) -> bool:
    """Whether it has layers whose weights PyTorch makes for the first image that it sees."""
    return any(map(nn.parameter.is_lazy, (*network.parameters(), *network.buffers())))


def check_has_values(network: nn.Module, what: str) -> None:
    """Raises UserError for a network with weights on the meta device."""
    if any(each.is_meta for each in (*network.parameters(), *network.buffers())):
        raise UserError(
            f"{what} has no values: it is on the meta device", "make it on the CPU, and load its weights there"
        )


def in_fp32(network: nn.Module) -> nn.Module:
    """It, cast where weights are in another precision, or a part in 16 bits; float64 beside fp32 has its reasons."""
    others = [each.dtype for each in network.parameters() if each.is_floating_point() and each.dtype != torch.float32]
    others += [each.dtype for each in network.buffers() if each.dtype in (torch.float16, torch.bfloat16)]
    return network.float() if others else network


class Normalise(nn.Module):
    """(x - mean) / std of pixels x (B, C, H, W) in [0, 1]; mean and std a value a channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            of_channels = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, of_channels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def undone(self, x: Tensor) -> Tensor:
        """Pixels of normalised images."""
        return x * self.std + self.mean


def to_channels(x: Tensor, channels: int) -> Tensor:
    """Images (B, 1 or 3, H, W) in grey (as ITU-R 601 weighs the colours; so does PIL) or in three channels."""
    if x.shape[1] == channels:
        return x
    if channels == 1:
        red, green, blue = x.split(1, 1)
        return 0.299 * red + 0.587 * green + 0.114 * blue
    return x.expand(-1, channels, -1, -1)


def duplicate(network: M) -> M:
    """A deep copy with parameters of its own: PyTorch would compute those of TorchScript's copy from the first ones.

    What modules keep of an earlier pass (a feature map, a weight that ``weight_norm`` worked out) is copied as numbers.
    """
    kept = (each for module in network.modules() for each in _tensors_kept(vars(module)))
    numbers = {id(each): each.detach().clone() for each in kept if not each.is_leaf}  # PyTorch copies none with a past
    with torch.no_grad():
        made = copy.deepcopy(network, numbers)
    for old, new in zip(network.parameters(), made.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return made


def _tensors_kept(value: Any) -> Iterator[Tensor]:
    """In dictionaries, lists and tuples, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_kept(each)


def let_gradients_through(network: nn.Module) -> None:
    """Makes parameters and buffers that came to be under ``torch.inference_mode`` anew, as none of those learns."""
    made: dict[int, Tensor] = {}  # by identity: layers may share them
    for module in network.modules():
        for kept in (module._parameters, module._buffers):
            for name, old in kept.items():
                if old is not None and not nn.parameter.is_lazy(old) and old.is_inference():
                    new = nn.Parameter(old.clone()) if isinstance(old, nn.Parameter) else old.clone()
                    kept[name] = made.setdefault(id(old), new.requires_grad_(old.requires_grad))


class Classifier(nn.Module):
    """Pixels (B, 1 or 3, H, W) in [0, 1] -> logits (B, num_classes), in fp32.

    State dicts are those of the network inside, so files stay those of the architecture.

    Args:
        network: takes normalised images of its own size. Its last linear layer is computed in fp32 from now on.
        name: what it is to the user.
        num_classes, img_size, mean, std: what it was, or is to be, trained on; img_size in pixels, one number or height
            and width; mean and std a value a channel.

    Attributes:
        memory_format: the order in memory that the network is given images in: see ``engine.probe.fitted``.
        autocast: whether it bears to run under autocast, where that is on.
        borrowed: whether it is somebody else's, who wants its weights left alone.
        counted: is told of every call, with the pixels; see ``engine.costs``.
        picked: which of several tensors in its answers are the logits.
        hooks: of whoever listens to its layers; see ``models.listening``.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        num_classes: int,
        img_size: int | Size,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        network = getattr(network, "_orig_mod", network)  # of torch.compile, which is ours to choose
        if any("nn.quantized" in type(module).__module__ for module in network.modules()):
            remedy = "give the network that it was made from, in floating point"
            raise UserError(f"{name} is quantised, and lets no gradient through to its images", remedy)
        let_gradients_through(network)
        self.network, self.name, self.num_classes, self.img_size = in_fp32(network), name, num_classes, pair(img_size)
        self.normalisation = Normalise(mean, std)
        self.memory_format, self.autocast, self.borrowed = torch.contiguous_format, True, False
        self.recomputes = False  # whether layers run once more on the way back (torch.utils.checkpoint), as far as seen
        self.counted: Callable[[nn.Module, Tensor], None] | None = None
        self.picked: Picked = {}
        self.hooks: list[RemovableHandle] = []
        if type(self.head) in EXACT:
            self.head.__class__ = EXACT[type(self.head)]

    @property
    def mean(self) -> Tensor:
        """Of each channel: (1, C, 1, 1)."""
        return self.normalisation.mean

    @property
    def std(self) -> Tensor:
        """Of each channel: (1, C, 1, 1)."""
        return self.normalisation.std

    @property
    def input_format(self) -> dict[str, list[float]]:
        """What it takes, as files keep it: img_size (H, W), mean and std a value a channel."""
        values = {"mean": self.mean, "std": self.std}
        return {"img_size": list(self.img_size)} | {
            n: [round(v, 6) for v in t.flatten().tolist()] for n, t in values.items()
        }

    def __str__(self) -> str:
        colours = "grey" if self.channels == 1 else "colour"
        mean, std = (" ".join(f"{v:.4g}" for v in t.flatten().tolist()) for t in (self.mean, self.std))
        return f"{self.name} takes {colours} images of {size_text(self.img_size)} pixels, mean {mean}, std {std}"

    @property
    def scripted(self) -> bool:
        """Whether it, or a part, is TorchScript: compiled code, whose layers show themselves to nobody."""
        return any(isinstance(module, torch.jit.ScriptModule) for module in self.network.modules())

    @property
    def channels(self) -> int:
        """Of the images that the network takes."""
        return self.mean.numel()

    def release(self) -> None:
        """Gives the network inside back as it came: its head a layer like others, nobody listens or counts."""
        self.counted = None
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        make_ordinary(self.network)

    def take(self, img_size: Size, mean: Sequence[float], std: Sequence[float]) -> None:
        """Images of another format from now on. Raises UserError where the channels are not as many as before."""
        if len(mean) != self.channels:
            raise UserError(
                f"{self.name} takes {self.channels} channels, not {len(mean)}", "give a mean and std for each"
            )
        self.img_size, self.normalisation = pair(img_size), Normalise(mean, std).to(self.mean.device)

    @property
    def head(self) -> nn.Linear | nn.Conv2d | None:
        """The last layer, in the order of ``modules()``, that can give the logits: linear, or a 1x1 convolution."""
        layers, widths = list(reversed(list(self.network.modules()))), {self.num_classes}
        widths |= {1} if self.num_classes == 2 else set()
        linear = next((m for m in layers if isinstance(m, nn.Linear)), None)
        gives = (m for m in layers if isinstance(m, nn.Conv2d) and m.out_channels in widths)
        if linear is not None and linear.out_features in widths:
            return linear
        return next((m for m in gives if m.kernel_size == (1, 1)), linear)

    @property
    def norm_layers(self) -> list[nn.Module]:
        """Those that remember statistics of what they were trained on, frozen ones among them.

        None of TorchScript's, which lets nobody listen to its layers.
        """
        kept = ("running_mean", "running_var")
        modules = (m for m in self.network.modules() if not isinstance(m, torch.jit.ScriptModule))
        values = ((m, [getattr(m, name, None) for name in kept]) for m in modules)
        return [m for m, both in values if all(isinstance(each, Tensor) and each.ndim == 1 for each in both)]

    def train(self, mode: bool = True) -> "Classifier":
        """Raises UserError for a network that is in eval mode for good, as one of ``torch.export`` is."""
        try:
            return super().train(mode)
        except NotImplementedError as error:
            if mode:
                raise UserError(f"{self.name} cannot be trained: {first_line(error)}", "give another network") from None
        return self

    def normalise(self, x: Tensor) -> Tensor:
        """What the network takes, of pixels: its channels, its size, its mean and standard deviation."""
        x = to_channels(x, self.channels)
        if x.shape[-2:] != self.img_size:
            x = F.interpolate(x, self.img_size, mode="bilinear", antialias=True)
        return self.normalisation(x).contiguous(memory_format=self.memory_format)

    def __call__(self, x: Tensor) -> Tensor:
        if self.counted is not None:  # here, outside of what torch.compile makes of forward
            self.counted(self, x)
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        if self.autocast:
            return self._logits(x).float()
        with torch.autocast(x.device.type, enabled=False):
            return self._logits(x).float()

    def _logits(self, x: Tensor) -> Tensor:
        answer = self.network(x)
        if not isinstance(answer, Tensor):
            places = tuple(candidates(answer, self.num_classes))
            if len(places) > 1 and places not in self.picked:  # the first time, when the network is looked at
                place = pick(self.network, x, self.num_classes)
                if place:
                    self.picked[places] = place
        return logits_of(answer, self.num_classes, self.name, self.picked)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state, *args, **kwargs)
