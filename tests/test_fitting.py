"""What a network does not bear is left out for it, and what it cannot do is said."""

import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import BF16, CLASSES, FP32, MEAN, SIZE, STD, small_context, small_network, small_teacher, user_error
from odd_networks import AlwaysDrops, Body, DoubleInside, ExtraState, Fourier, Masked, SilentModes
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import datafree
from datafree import user_code
from datafree.engine.frozen import folded, frozen
from datafree.engine.probe import fitted
from datafree.errors import UserError
from datafree.methods.aeahl_rg import AeahlRg
from datafree.methods.priors import Priors
from datafree.models.classifier import Classifier

SHAPE = (3, SIZE, SIZE)
OF_TASK = {"num_classes": CLASSES, "img_size": SIZE, "mean": MEAN, "std": STD, "device": "cpu", "precision": "bf16"}
SHORT = {"epochs": 2, "warmup": 1, "kd_steps": 1, "batch_size": 4, "synthesis_batch_size": 4, "g_steps": 1}
SHORT |= {"nz": 4, "ngf": 2}


class ByKeyword(Body):
    def middle(self, x):
        return self.norm(input=self.conv(x))


class RoundTheNorm(Body):
    """Uses what its norm remembers, and never calls it."""

    def middle(self, x):
        return F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var)


class OnItsWeights(Body):
    """Standardises its weights, as NFNets do: rounded before, they give other answers."""

    def middle(self, x):
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) * 1e3
        return self.norm(F.conv2d(x, w, self.conv.bias))


class SoftmaxInEval(Body):
    def forward(self, x):
        x = super().forward(x)
        return x if self.training else x.softmax(1)


def wrapped(network, size=SIZE):
    return Classifier(network, "own", CLASSES, size, MEAN, STD)


def test_a_norm_called_by_keyword_is_folded_and_leaves_no_hook():
    model, x = wrapped(ByKeyword()).eval(), torch.rand(2, *SHAPE)
    copied = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    torch.testing.assert_close(copied(x), model(x), rtol=1e-3, atol=1e-4)
    assert not any(m._forward_hooks for each in (model, copied) for m in each.modules())


def test_what_cannot_be_folded_is_left_as_it_is():
    network = Body()
    network.conv = spectral_norm(network.conv)
    model = wrapped(network).eval()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded(model).modules()) == 1
    scripted = wrapped(torch.jit.script(small_network(1)))
    assert folded(scripted) is scripted
    fitted(scripted, "teacher", SHAPE, FP32)
    frozen(scripted, FP32)


def test_a_teacher_that_works_on_its_weights_keeps_them_in_fp32():
    for network, dtype in ((OnItsWeights(), torch.float32), (Body(), torch.bfloat16)):
        model = wrapped(network)
        fitted(model, "teacher", SHAPE, BF16)
        assert frozen(model, BF16).network.conv.weight.dtype == dtype


def weights(**of):
    return AeahlRg.Config(**of)


def test_statistics_that_the_forward_goes_round_are_none():
    for network, names in ((Body(), ["bn"]), (RoundTheNorm(), ["tv", "l2"])):
        priors = Priors(small_context(wrapped(network).eval()), weights(), bn_mmt=0.0)
        assert list(priors.weights) == names


class AttentionPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):  # (B, 4, h, w) -> (B, 4)
        return self.inner(x.mean((2, 3)))


class ConvAttention2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("norm", [AttentionPool, ConvAttention2d])
def test_attention_that_gives_no_tokens_has_no_patches(norm):
    class Net(Body):
        def forward(self, x):
            x = self.middle(x)
            return self.fc(x if x.ndim == 2 else x.mean((2, 3)))

    priors = Priors(small_context(wrapped(Net(norm())).eval()), weights(), bn_mmt=0.0)
    assert list(priors.weights) == ["tv", "l2"]


def test_statistics_of_other_shapes_than_one_a_channel_are_none():
    teacher = small_teacher()
    norm = teacher.network.bn1
    norm.running_mean, norm.running_var = (each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
    assert teacher.norm_layers == [teacher.network.bn2]


def test_a_student_is_looked_at_in_both_modes():
    (warning,) = fitted(wrapped(SoftmaxInEval()), "student own", SHAPE, FP32, train_batch=4)
    assert "softmax" in warning

    class Classes(Body):
        def forward(self, x):
            x = super().forward(x)
            return x if self.training else x.argmax(1)

    with user_error("own answers a tensor (2,)"):
        fitted(wrapped(Classes()), "student own", SHAPE, FP32, train_batch=4)


def test_which_of_several_tensors_was_taken_for_the_logits_is_told():
    class Two(Body):
        def forward(self, x):
            logits = super().forward(x)
            return {"a": logits.tanh(), "b": logits}

    for batch in (0, 4):
        (remark,) = fitted(wrapped(Two()), "student own", SHAPE, FP32, train_batch=batch)
        assert remark == "student own: of ['a'], ['b'] its logits are ['b']"


def test_one_logit_for_two_classes_is_told():
    for last, words in ((2.0, "the second class's, beside 0 for the first"), (0.5, "if that is a sigmoid's")):
        network = Body()
        network.fc = nn.Linear(4, 1)
        nn.init.constant_(network.fc.weight, 0), nn.init.constant_(network.fc.bias, last)
        (remark,) = fitted(Classifier(network, "own", 2, SIZE, MEAN, STD), "student own", SHAPE, FP32, train_batch=4)
        assert "student own gives one logit" in remark and words in remark


def test_norms_over_a_single_pixel_do_not_cost_a_student_its_memory_order():
    class Deep(Body):
        def forward(self, x):
            return self.fc(self.norm(self.conv(x).mean((2, 3), keepdim=True)).flatten(1))

    model = wrapped(Deep())
    assert fitted(model, "student own", SHAPE, FP32, train_batch=4) == []
    assert model.memory_format == torch.channels_last


def test_networks_in_other_precisions_become_fp32():
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        model = wrapped(Body().to(kind))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert fitted(model, "teacher", SHAPE, FP32) == []


def test_a_lazy_network_gets_its_weights_and_one_without_any_is_told_so():
    class Lazy(Body):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.LazyConv2d(4, 3), nn.LazyLinear(CLASSES)

    made = [wrapped(Lazy()) for _ in range(2)]
    for model in made:
        fitted(model, "student own", SHAPE, FP32, train_batch=4)
    assert torch.equal(made[0].network.conv.weight, made[1].network.conv.weight)
    with user_error("student own has no weights to train"):
        fitted(wrapped(Body().requires_grad_(False)), "student own", SHAPE, FP32, train_batch=4)


def test_a_network_that_answers_otherwise_each_time_is_told_of():
    said = fitted(wrapped(AlwaysDrops()), "student own", SHAPE, FP32, 2)
    assert any("otherwise each time - dropout or noise" in line for line in said)
    assert not any("each time" in line for line in fitted(wrapped(Body()), "student own", SHAPE, FP32, 2))


def test_a_mixture_of_types_is_not_answered_with_sizes():
    class Doubles(Body):
        def forward(self, x):
            return super().forward(x.double())

    with user_error("take double(), half() and bfloat16() out of it"):
        fitted(wrapped(Doubles().double()), "student own", SHAPE, FP32, 2)


def test_four_channels_are_not_answered_with_a_flag_that_refuses_them():
    network = Body()
    network.conv = nn.Conv2d(4, 4, 3)
    with user_error("takes 4 channels, images have 1 or 3", "wrap it"):
        fitted(wrapped(network), "teacher own", SHAPE, FP32)


class ByPixelValues(Body):
    def forward(self, *, pixel_values):
        return super().forward(pixel_values)


class WithLabels(Body):
    def forward(self, x, labels):
        return super().forward(x)


class LazyByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)

    def forward(self, *, pixel_values):
        return self.conv(pixel_values)


class ChannelsLast(Body):
    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2))


def made_in_inference_mode():
    with torch.inference_mode():
        network = Body()
        network.tied = network.conv
    return network


@pytest.mark.slow
@pytest.mark.parametrize("make", [ExtraState, Masked, Fourier, DoubleInside, SilentModes, made_in_inference_mode])
def test_what_a_student_keeps_returns_or_was_made_under_does_not_matter(make, tmp_path):
    student = make()
    datafree.distil(small_network(1), student, **OF_TASK, **SHORT, run_root=tmp_path)
    assert all(weight.grad is not None for weight in student.fc.parameters())
    assert getattr(student, "tied", student.conv) is student.conv


class ThroughNumpy(Body):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy()))


class FailsInTraining(Body):
    def forward(self, x):
        assert not self.training, "not me"
        return super().forward(x)


class LargeInTraining(Body):
    """As Inception's, its auxiliary head wants larger images than its answers do."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Conv2d(3, 1, 60)

    def forward(self, x):
        return super().forward(x) + (self.aux(x).mean() if self.training else 0)


FAILS = {
    "no gradient": (ThroughNumpy, "Can't call numpy()", "it answers where no gradients are asked for"),
    "training": (FailsInTraining, "in training: not me", "it answers in eval mode alone: mend its training mode"),
    "training size": (LargeInTraining, "it answers images of 64x64 pixels: say --student_img_size 64"),
}


@pytest.mark.parametrize(("make", "words"), [(make, words) for make, *words in FAILS.values()], ids=FAILS)
def test_larger_batches_and_sizes_are_advised_only_where_they_help(make, words):
    with user_error(*words):
        fitted(wrapped(make()), "student own", SHAPE, FP32, train_batch=4)


class OneSize(Body):
    def forward(self, x):
        return self.fc(self.middle(x).flatten(1)[:, : 4 * 26 * 26].view(len(x), 4, 26, 26).mean((2, 3)))


class NormOverImages(Body):
    def __init__(self):
        super().__init__()
        self.norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))


def rows(pixels):
    return nn.Sequential(nn.Linear(pixels, 4), nn.ReLU(), nn.Linear(4, CLASSES))


class Demanding(Body):
    def __init__(self, met):
        super().__init__()
        self.met = met

    def forward(self, x):
        assert self.met(x)
        return super().forward(x)


UNFIT = {
    "rows of that size": (lambda: rows(3 * SIZE**2), "it takes rows of numbers, no images: wrap it in nn.Sequential("),
    "rows of another size": (
        lambda: rows(784),
        "takes 784 numbers an image: say --teacher_img_size 28 --teacher_channels 1, and wrap it",
    ),
    "an MLP that flattens": (
        lambda: nn.Sequential(nn.Flatten(), rows(3072)),
        "takes 3072 numbers an image: say --teacher_img_size 32 --teacher_channels 3\n",
    ),
    "keywords only": (ByPixelValues, "its forward does not take images alone, by position", "wrap it"),
    "keywords only, and lazy": (LazyByKeyword, "its forward does not take images alone, by position", "wrap it"),
    "labels too": (WithLabels, "by position (missing a required argument: 'labels'): wrap it"),
    "channels last": (ChannelsLast, "it takes images with their channels last", "x.permute(0, 2, 3, 1)"),
    "a batch of one number": (lambda: Demanding(lambda x: len(x) == 2), "batches of 3 ", "it takes batches of 2 alone"),
    "single images": (lambda: Demanding(lambda x: len(x) == 1), "batches of 2 ", "it takes batches of 1 alone"),
    "channels-last memory": (
        lambda: Demanding(lambda x: x.is_contiguous(memory_format=torch.channels_last)),
        "x = x.contiguous(memory_format=torch.channels_last)",
    ),
    "one size": (OneSize, "it answers images of 28x28 pixels: say --teacher_img_size 28"),
}


@pytest.mark.parametrize(("make", "words"), [(make, words) for make, *words in UNFIT.values()], ids=UNFIT)
def test_what_a_network_takes_instead_of_images_is_found_out_and_said(make, words):
    with pytest.raises(UserError) as caught:
        fitted(wrapped(make()), "teacher own", SHAPE, FP32)
    assert all(word in f"{caught.value}\n" for word in words), caught.value


def test_what_is_said_of_sizes_and_channels_is_true():
    flat = nn.Sequential(nn.Flatten(), rows(784))
    for network, channels in ((OneSize(), 3), (flat, 1)):
        model = Classifier(network, "own", CLASSES, 28, (0.5,) * channels, (0.5,) * channels)
        fitted(model, "teacher own", SHAPE, FP32)
        assert model(torch.rand(2, *SHAPE)).shape == (2, CLASSES)


def test_a_student_that_fails_in_training_alone_is_not_told_of_sizes():
    with user_error("give it larger batches"):
        fitted(wrapped(NormOverImages()), "student own", SHAPE, FP32, train_batch=1)


def test_two_folders_may_have_helpers_of_one_name_and_import_them_late(tmp_path):
    for name, width in (("a", 3), ("b", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "net.py").write_text("from helper import WIDTH\ndef make():\n    return WIDTH")
    found = [user_code.load(f"{tmp_path / name}/net.py:make", "model")() for name in "ab"]
    assert found == [3, 7] and "helper" not in sys.modules
