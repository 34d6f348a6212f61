"""Classifiers against the recorded facts of the field's model zoo, and features read off any model.

``fixtures/classifiers.json`` has, for each of the 19 networks of CIFAR size with 10 classes, its number of parameters,
the width of its features (1 stands for "not recorded"), its state dict as [key, shape] in order and, for ten of them,
the logits that the published network gives for the weights and images of ``set_recorded_weights`` and
``recorded_images`` below.
"""

import json
from pathlib import Path

import pytest
import torch
from datafree.models.features import forward_with_features, last_linear
from torch import nn

from datafree.errors import UserError
from datafree.models.cifar_resnet import CifarResNet
from datafree.models.vgg import VGG
from datafree.models.wide_resnet import WideResNet
from datafree.registration import Registry
from registry import MODELS

PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "classifiers.json").read_text())
PUBLISHED_LOGITS = [name for name, facts in PUBLISHED.items() if "logits_32" in facts]
NUM_CLASSES = 7  # of no data set, so that a fixed number of classes shows


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def build_on_meta(name: str) -> nn.Module:
    """Shapes without memory or initialisation."""
    with torch.device("meta"):
        return MODELS[name](10)


def recorded_images() -> torch.Tensor:
    """sin(0.05 j) over the flat index j, as two images."""
    return torch.sin(0.05 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).reshape(2, 3, 32, 32)


def set_recorded_weights(model: nn.Module) -> None:
    """Fills tensor n of the state dict, its keys sorted as strings, from b_j = sin(0.1 j + n) over the flat index j.

    Variances and other vectors (BN weights) become 1 + b / 10, means and biases b / 10, and a matrix or conv weight
    b * sqrt(2 / fan_in). Integer tensors stay, but are counted in n.
    """
    for n, (key, tensor) in enumerate(sorted(model.state_dict().items())):
        if not tensor.is_floating_point():
            continue
        b = torch.sin(0.1 * torch.arange(tensor.numel(), dtype=torch.float64) + n).reshape(tensor.shape)
        if key.endswith(("running_mean", "bias")):
            b = 0.1 * b
        elif tensor.ndim == 1:
            b = 1 + 0.1 * b
        else:
            b = b * (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(b)


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_has_the_published_keys_shapes_and_order(name):
    state = build_on_meta(name).state_dict()
    assert [[key, list(tensor.shape)] for key, tensor in state.items()] == PUBLISHED[name]["state_dict"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    assert sum(parameter.numel() for parameter in build_on_meta(name).parameters()) == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize("name", [name for name, facts in PUBLISHED.items() if facts["features"] != 1])
def test_features_have_the_published_width(name):
    assert last_linear(build_on_meta(name)).in_features == PUBLISHED[name]["features"]


@pytest.mark.parametrize("name", PUBLISHED_LOGITS)
def test_logits_are_those_of_the_published_network(name):
    model = build_on_meta(name).to_empty(device="cpu").double().eval()
    set_recorded_weights(model)
    with torch.no_grad():
        logits = model(recorded_images())
    expected = torch.tensor(PUBLISHED[name]["logits_32"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)


def test_logits_of_ten_networks_are_recorded():
    assert len(PUBLISHED_LOGITS) == 10


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_32_and_64_pixels_to_logits_and_to_features_that_give_them(name):
    model = MODELS[name](NUM_CLASSES).eval()
    for size in (64,) if name.endswith("_imagenet") else (32, 64):
        with torch.no_grad():
            logits, features = forward_with_features(model, torch.randn(2, 3, size, size))
            assert logits.shape == (2, NUM_CLASSES)
            assert features.shape == (2, last_linear(model).in_features)
            assert torch.equal(last_linear(model)(features), logits)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_batch_norm_are_left_as_they_were_and_carry_gradients_to_the_images(name):
    model = MODELS[name](NUM_CLASSES).eval().requires_grad_(False)
    seen = []  # (input, its version when BN read it)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0]._version)))
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(images)
    assert all(tensor._version == version for tensor, version in seen)
    sum(tensor.square().mean() for tensor, _ in seen).backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()


@pytest.mark.parametrize("name", ["wrn16_1", "resnet8", "vgg8", "shufflenetv2"])
def test_training_step_gives_every_parameter_a_gradient(name):
    model = MODELS[name](NUM_CLASSES).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["wrn40_2", "resnet8x4", "vgg8", "resnet18"])
def test_initial_convolutions_have_the_published_spread(name):
    """PyTorch's default (uniform, variance 1 / (3 fan_in)) in the four-stage networks, else He's normal by fan-out."""
    convs = [module for module in MODELS[name](NUM_CLASSES).modules() if isinstance(module, nn.Conv2d)]
    weight = max((conv.weight for conv in convs), key=torch.Tensor.numel)
    fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
    expected = (1 / (3 * fan_in)) ** 0.5 if name == "resnet18" else (2 / fan_out) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("size", "expected"), [(32, 4), (64, 4), (96, 12)])
def test_vgg_pools_after_block_3_only_where_the_input_is_64_high(size, expected):
    sizes = []
    model = MODELS["vgg8"](NUM_CLASSES).eval()
    model.block4.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
    model(torch.randn(1, 3, size, size))
    assert sizes == [(expected, expected)]


def test_shufflenet_basic_block_interleaves_the_kept_half_with_the_transformed_half():
    block = MODELS["shufflenetv2"](NUM_CLASSES).eval().layer1[1]
    x = torch.randn(2, 116, 8, 8)
    out = block(x)
    half = (block.bn1(block.conv1(x[:, 58:]))).relu()
    half = block.bn3(block.conv3(block.bn2(block.conv2(half)))).relu()
    assert torch.equal(out[:, 0::2], x[:, :58])
    torch.testing.assert_close(out[:, 1::2], half)


class OwnModel(nn.Module):
    """What a user may bring: other layer names, no pooling, the head called by keyword."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3 * 8 * 8, 5)
        self.head = nn.Linear(5, NUM_CLASSES)

    def forward(self, x):
        return self.head(input=self.stem(x.flatten(1)).tanh())


def test_features_come_from_a_users_model_without_a_special_forward():
    model, images = OwnModel(), torch.randn(3, 3, 8, 8, requires_grad=True)
    logits, features = forward_with_features(model, images)
    assert torch.equal(logits, model(images))
    assert torch.equal(features, model.stem(images.flatten(1)).tanh())
    features.sum().backward()
    assert images.grad.any()
    assert model.stem.weight.grad.any()
    assert model.head.weight.grad is None


def test_reading_features_leaves_no_hook_even_after_an_error():
    model = OwnModel()
    forward_with_features(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(RuntimeError):
        forward_with_features(model, torch.randn(1, 3, 9, 9))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_model_without_a_linear_layer_is_the_users_error():
    with pytest.raises(UserError, match=r"Conv2d has no nn\.Linear"):
        last_linear(nn.Conv2d(3, 3, 1))


def test_model_that_skips_its_last_linear_layer_is_the_users_error():
    class Skipping(OwnModel):
        def forward(self, x):
            return self.stem(x.flatten(1))

    with pytest.raises(UserError, match="Skipping does not call"):
        forward_with_features(Skipping(), torch.randn(1, 3, 8, 8))


def test_impossible_depths_and_block_counts_are_refused():
    for build in (
        lambda: WideResNet(18, 1, NUM_CLASSES),
        lambda: CifarResNet(18, (16, 16, 32, 64), NUM_CLASSES),
        lambda: VGG(((8,), (8,)), NUM_CLASSES),
    ):
        with pytest.raises(ValueError, match="not"):
            build()


def test_registry_has_the_published_19_and_the_three_imagenet_models():
    assert set(MODELS) == {*PUBLISHED, "resnet50_imagenet", "resnet18_imagenet", "mobilenetv2_imagenet"}


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UserError, match=r"unknown model 'resnet43'.*resnet34"):
        MODELS["resnet43"]


def test_unknown_name_near_to_none_lists_all():
    with pytest.raises(UserError) as error:
        MODELS["?"]
    assert all(name in error.value.remedy for name in MODELS)


def test_duplicate_name_fails():
    models = Registry("model")
    models.add("twin", 1)
    with pytest.raises(ValueError, match="model 'twin' is registered already"):
        models.add("twin", 2)
    assert models["twin"] == 1
