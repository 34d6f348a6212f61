"""Networks of the user's own, in the shapes that people write them, as teacher and as student of main.py."""

import json

import pytest
import torch
from programs import TINY, error_of, finished

from datafree import user_code

CLASSES = 5
FILE = '''
import threading

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


class Net(nn.Module):
    channels, norm = 3, nn.BatchNorm2d

    def __init__(self, classes, outputs=None):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(self.channels, 6, 3, 2, 1), self.norm(6), nn.ReLU())
        self.l = nn.Linear(6, outputs or classes)

    def forward(self, x):
        return self.l(self.f(x).mean((2, 3)))


class Plain(Net):
    norm = nn.Identity


class Grouped(Net):
    norm = staticmethod(lambda channels: nn.GroupNorm(2, channels))


class Synced(Net):
    norm = nn.SyncBatchNorm


class Frozen(Net):
    norm = FrozenBatchNorm2d


class Grey(Net):
    channels = 1


class View(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.l = nn.Linear(6 * 16, classes)

    def forward(self, x):
        x = self.f(x)
        return self.l(x.view(x.size(0), -1))


class Tuple(Net):
    def forward(self, x):
        return x, super().forward(x)


class Output(Net):
    def forward(self, x):
        return {"logits": super().forward(x), "features": x}


class ConvHead(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.l = nn.Conv2d(6, classes, 1)

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(self.l(self.f(x)), 1)


class AuxiliaryInTraining(Net):
    def forward(self, x):
        return (super().forward(x), super().forward(x)) if self.training else super().forward(x)


class Uncopied(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.lock = threading.Lock()  # deepcopy refuses it


class NoAutocast(Net):
    """Mixes what autocast made bf16 with what it did not."""

    def forward(self, x):
        x = self.f(x)
        return self.l(torch.lerp(x, torch.zeros(x.shape), 0.1).mean((2, 3)))


class ByWeight(Net):
    """Has a use of its own for the weight of a convolution, in fp32."""

    def forward(self, x):
        x = self.f(x).float()
        return self.l(torch.lerp(x, self.f[0].weight.mean().expand(x.shape), 0.1).mean((2, 3)))


class OneSize(Net):
    def forward(self, x):
        assert x.shape[2:] == (12, 20), f"images of 12x20, not {tuple(x.shape[2:])}"
        return super().forward(x)


class Softmax(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


class NoGradient(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Dense(Net):
    def forward(self, x):
        x = super().forward(x)
        return x[:, :, None, None].expand(-1, -1, 2, 2)


class Infinite(Net):
    def forward(self, x):
        return super().forward(x) / 0


def wide(num_classes=5, width=6):
    return Net(num_classes, outputs=9)


def fails(num_classes):
    raise ValueError("no such depth")


def text():
    return "a network"
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file of networks; each has its weights beside it."""
    folder = tmp_path_factory.mktemp("own networks")
    (folder / "nets.py").write_text(FILE)
    return folder


def line(own, tmp_path, teacher="Net", student="Net", flags=""):
    """Of main.py, for images of 8x8 that are not there."""
    name = user_code.load(f"{own / 'nets.py'}:{teacher.split(',')[0]}", "model")
    try:
        torch.manual_seed(1)
        torch.save({"state_dict": name(CLASSES).state_dict()}, own / "teacher.pth")
    except (TypeError, ValueError, AttributeError):
        torch.save({"state_dict": {"a": torch.zeros(1)}}, own / "teacher.pth")
    data = "--dataset imagefolder:absent --num_classes 5 --img_size 8 --mean .5 .5 .5 --std .5 .5 .5"
    networks = ["--teacher", f"{own / 'nets.py'}:{teacher}", "--student", f"{own / 'nets.py'}:{student}"]
    rest = ["--teacher_path", own / "teacher.pth", "--run_root", tmp_path, "--p_width", 4, "--hl"]
    return [*TINY, *data.split(), *networks, *rest, *flags.split()]


GOOD = {  # as both: (flags, line of the log about the teacher, or None)
    "Net": ("", None),
    "Plain": ("", "priors: tv 1, l2 0.1 (the teacher has no BatchNorm statistics and no attention layers)"),
    "Frozen": ("", "priors: bn 10"),
    "Grouped": ("", "priors: tv 1, l2 0.1 (the teacher has no BatchNorm statistics and no attention layers)"),
    "Synced": ("--bn 10", "1/3  bn "),
    "Grey": ("", "takes grey images of 8x8 pixels"),
    "View": ("", "runs in PyTorch's default memory order: in channels-last it fails (view size is not compatible"),
    "Tuple": ("", None),
    "Output": ("", None),
    "ConvHead": ("", None),
    "AuxiliaryInTraining": ("", None),
    "Uncopied": ("", None),
    "NoAutocast": ("--precision bf16", "runs in fp32: under bf16 autocast it fails (expected dtype"),
    "ByWeight": ("--precision bf16", None),
    "OneSize": ("--teacher_img_size 12 20 --student_img_size 12 20", "takes colour images of 12x20 pixels"),
    "Softmax": ("", "seems to end in a softmax"),
}


QUICK = {"Tuple", "View", "Softmax"}  # of one second each; the others with all tests
CASES = [pytest.param(k, *v, id=k, marks=[] if k in QUICK else [pytest.mark.slow]) for k, v in GOOD.items()]


@pytest.mark.parametrize(("name", "flags", "words"), CASES)
def test_a_network_of_a_common_shape_teaches_and_learns(own, tmp_path, name, flags, words):
    log = finished(line(own, tmp_path, name, name, flags))
    assert words is None or words in log, log
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"anew-hl-absent-nets-{name}-nets-{name}"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 3


BAD = {  # as teacher and as student: what is said
    "wide": "has 9 classes, and the data have 5: it answers a tensor (2, 9)",
    "NoGradient": "lets no gradient through to its images",
    "Dense": "answers a tensor (2, 5, 2, 2), not logits of 5 classes",
    "Infinite": "answers noise with NaN or infinite numbers",
    "OneSize": "images of 12x20, not (8, 8)",
    "fails": "cannot be called: ValueError: no such depth",
    "text": "returns a str, no torch.nn.Module",
    "absent": "has nothing called 'absent'",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_that_cannot_do_its_part_is_told_so_in_its_own_words_before_anything_is_written(
    own, tmp_path, role, name
):
    if name == "absent":
        words = line(own, tmp_path)
        words[words.index(f"--{role}") + 1] = f"{own / 'nets.py'}:absent"
    else:
        words = line(own, tmp_path, **{role: name})
    assert BAD[name] in error_of(words)
    assert not any(tmp_path.iterdir())


def test_a_prior_on_the_command_line_that_the_teacher_cannot_give_is_refused(own, tmp_path):
    for flags, words in (("--patch 1", "--patch 1: the teacher has no attention"), ("--bn 10", "no BatchNorm")):
        assert words in error_of(line(own, tmp_path, "Plain", flags=flags))
    assert not any(tmp_path.iterdir())


def test_arguments_of_a_name_reach_the_function(own, tmp_path):
    words = line(own, tmp_path, student="wide,width=3,num_classes=7")
    assert "a tensor (2, 9)" in error_of(words)
    assert "unexpected keyword argument 'depth'" in error_of(line(own, tmp_path, student="wide,depth=3"))


def test_a_grey_network_with_a_colour_flag_is_told_what_its_first_layer_takes(own, tmp_path):
    message = error_of(line(own, tmp_path, "Grey", flags="--teacher_channels 3"))
    assert "cannot take batches of 2 colour images" in message and "--teacher_channels 1" in message


@pytest.mark.slow
def test_teacher_and_student_of_different_sizes_channels_and_normalisations_work_in_one_run(own, tmp_path):
    flags = "--teacher_img_size 12 20 --teacher_mean .4 .5 .6 --teacher_std .2 .2 .3 --student_mean .1 --student_std .3"
    log = finished(line(own, tmp_path, "OneSize", "Grey", flags))
    assert "takes colour images of 12x20 pixels, mean 0.4 0.5 0.6, std 0.2 0.2 0.3" in log
    assert "takes grey images of 8x8 pixels, mean 0.1, std 0.3" in log


@pytest.mark.slow
@pytest.mark.parametrize("size", ["9", "10 14"])
def test_images_of_any_height_and_width_are_made(own, tmp_path, size):
    finished(line(own, tmp_path, flags=f"--img_size {size}"))
    (folder,) = tmp_path.iterdir()
    height, width = (size.split() * 2)[:2]
    assert torch.load(folder / "synthetic.pth", weights_only=True).shape[1:] == (3, int(height), int(width))


TRAINED = """

def trained(num_classes):
    network = Net(num_classes)
    network.load_state_dict(torch.load(__file__.replace("nets.py", "teacher.pth"), weights_only=True)["state_dict"])
    return network
"""


def test_a_function_that_loads_its_weights_needs_no_file_and_one_of_random_weights_is_refused(own, tmp_path):
    line(own, tmp_path)  # writes the weights of Net
    (own / "nets.py").write_text(FILE + TRAINED)
    words = line(own, tmp_path)
    at = words.index("--teacher_path")
    del words[at : at + 2]
    assert "nets.py:Net gives random weights" in error_of(words)
    words[words.index("--teacher") + 1] = f"{own / 'nets.py'}:trained"
    log = finished([*words, "--dry_run"])
    assert "with the weights that it comes with" in log
