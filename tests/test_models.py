"""The architectures against the recorded facts of the field's model zoo.

``fixtures/classifiers.json`` has, for each of the 19 networks of CIFAR size with 10 classes, its number of parameters,
the width of its features (1 stands for "not recorded"), its state dict as [key, shape] in order and, for ten of them,
the logits that the published network gives for the weights and images of ``set_recorded_weights`` and
``recorded_images`` below.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.models.cifar_resnet import CifarResNet
from datafree.models.vgg import VGG
from datafree.models.wide_resnet import WideResNet
from registry import MODELS

PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "classifiers.json").read_text())
PUBLISHED_LOGITS = [name for name, facts in PUBLISHED.items() if "logits_32" in facts]
NUM_CLASSES = 7  # of no data set, so that a fixed number of classes shows


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
def test_names_shapes_order_number_and_features_are_the_published_ones(name):
    model, facts = build_on_meta(name), PUBLISHED[name]
    assert [[key, list(tensor.shape)] for key, tensor in model.state_dict().items()] == facts["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    assert facts["features"] in (1, last.in_features)


def test_logits_of_ten_networks_are_recorded():
    assert len(PUBLISHED) == 19 and len(PUBLISHED_LOGITS) == 10


@pytest.mark.parametrize("name", PUBLISHED_LOGITS)
def test_logits_are_those_of_the_published_network(name):
    model = build_on_meta(name).to_empty(device="cpu").double().eval()
    set_recorded_weights(model)
    with torch.no_grad():
        logits = model(recorded_images())
    expected = torch.tensor(PUBLISHED[name]["logits_32"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize(
    "build",
    [
        lambda: WideResNet(18, 1, NUM_CLASSES),
        lambda: CifarResNet(18, (16, 16, 32, 64), NUM_CLASSES),
        lambda: VGG(((8,), (8,)), NUM_CLASSES),
    ],
)
def test_impossible_depths_and_block_counts_are_refused(build):
    with pytest.raises(ValueError, match="not"):
        build()
