"""What several test files share: small classifiers and generator, a context, and how a user's mistake looks."""

import contextlib
import gc
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datafree.data.augmentation import Augmentation
from datafree.data.batch import Batch
from datafree.data.specs import DatasetSpec
from datafree.engine.context import Context
from datafree.engine.device import PRECISIONS, Compute
from datafree.engine.freed_memory import keep_freed_memory
from datafree.engine.randomness import Streams
from datafree.errors import UserError
from datafree.methods.aeahl_rg import build_generator
from datafree.models.classifier import Classifier
from datafree.models.generator import ReusableGenerator
from datafree.models.head_input import HeadInput
from datafree.runs.stopping import SIGNALS
from datafree.targets.base import Targets

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FP32, BF16, FP16 = (Compute(CPU, dtype, reason="in tests") for dtype in PRECISIONS.values())
SIZE, CLASSES, NZ, NGF = 8, 5, 6, 2  # of the small networks
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SINCE_2_7 = hasattr(torch.cpu.Stream, "record_event")  # of PyTorch: FSDP2 works on CPUs, a tally is compiled once


def pytest_collection_modifyitems(items):
    """The longest first, so that no process is left with them at the end."""
    items.sort(key=lambda item: item.path.stem != "test_learning")


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: it is not looked through for garbage again and again
    keep_freed_memory()  # as programs do


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_before():
    """Whatever a test or a library in it listens for, the next test, or a process that it forks, does not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def no_network(monkeypatch):
    """Whatever tries to reach the network fails, and is listed."""
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return calls


class SmallClassifier(nn.Module):
    """Two convolutions with BatchNorm (or without), a global pool, a linear layer."""

    def __init__(self, num_classes: int = CLASSES, width: int = 4, batch_norm: bool = True):
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else lambda _: nn.Identity()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), norm(2 * width)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


def small_network(seed: int, **how) -> SmallClassifier:
    """Of that seed, with BN statistics, weights and biases away from their first values and logits that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallClassifier(**how)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                    module.weight.uniform_(0.5, 2)
                    module.bias.normal_()
            model.fc.weight.mul_(5)
    return model


def small_classifier(seed: int, mean=MEAN, std=STD, size: int = SIZE, **how) -> Classifier:
    """That network with its input format."""
    return Classifier(small_network(seed, **how), "small", CLASSES, size, mean, std)


def small_teacher(seed: int = 1, **how) -> Classifier:
    """Frozen and in eval mode."""
    return small_classifier(seed, **how).eval().requires_grad_(False)


def logits_and_features(classifier: Classifier, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Its logits, and what its head reads."""
    listener = HeadInput(classifier)
    with listener.listening():
        logits = classifier(x)
    listener.remove()
    return logits, listener.features


def small_generator(seed: int = 0) -> ReusableGenerator:
    return build_generator(seed, NZ, NGF, (3, SIZE, SIZE))


def small_spec(flip: bool = True, size: int = SIZE) -> DatasetSpec:
    """A data set in name only."""
    return DatasetSpec("small", CLASSES, size, MEAN, STD, flip=flip, load=lambda *_: None)


def small_context(
    teacher: Classifier | None = None,
    student: Classifier | None = None,
    seed: int = 0,
    compute: Compute = FP32,
    padding: int = 1,
    flip: bool = True,
) -> Context:
    """A run's surroundings; the images are of SIZE whatever the networks take."""
    teacher, student = teacher or small_teacher(), student or small_classifier(2)
    streams, augmentation = Streams(seed, compute.device), Augmentation(padding, flip)
    return Context(small_spec(flip), teacher, teacher, student, compute, streams, augmentation)


def loss_on(targets: Targets, batch: Batch, student: Classifier) -> Tensor:
    """What a batch costs the student, its lesson made on the spot."""
    return targets.loss(targets.lesson(batch), student)


def without_overflow(context: Context) -> Context:
    """That one, in fp16 with a scale at which nothing overflows; at the first one it does, as often as it takes."""
    context.scaler.load_state_dict(context.scaler.state_dict() | {"scale": 2.0**8})
    return context


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@contextlib.contextmanager
def user_error(*words: str, kind: type[UserError] | None = None):
    """Within, a UserError (of exactly that kind) of one line, what and remedy, that has all these words."""
    with pytest.raises(UserError) as caught:
        yield
    text = str(caught.value)
    assert kind in (None, type(caught.value))
    assert "\n" not in text and " — " in text and caught.value.what and caught.value.remedy
    for word in words:
        assert word in text, text
    del caught  # and with it the frames of its traceback, now: workers of theirs would take 5 s to end by themselves
