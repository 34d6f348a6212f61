"""LeNet-5: published sizes and names, its forward pass by hand, and that it reads grey images whatever the data are."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FP32, logits_and_features

import registry
from datafree.engine.frozen import folded
from datafree.engine.probe import fitted
from datafree.models.generator import NormalisedNetwork
from datafree.models.lenet import LeNet5
from datafree.models.names import InputFormat
from registry import DATASETS, MODELS

SIZES = {"lenet5": (6, 16, 120, 84), "lenet5_half": (3, 8, 60, 42), "lenet5_bn": (6, 16, 120, 84)}
PUBLISHED = {"lenet5": 61_706, "lenet5_half": 15_738}  # weights, of DAFL's and DFAD's code


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_sizes_are_the_published_ones(name):
    a, b, c, d = SIZES[name]
    shapes = {key: tuple(value.shape) for key, value in MODELS[name](10).state_dict().items()}
    assert shapes == {
        "conv1.weight": (a, 1, 5, 5),
        "conv1.bias": (a,),
        "conv2.weight": (b, a, 5, 5),
        "conv2.bias": (b,),
        "conv3.weight": (c, b, 5, 5),
        "conv3.bias": (c,),
        "fc1.weight": (d, c),
        "fc1.bias": (d,),
        "fc2.weight": (10, d),
        "fc2.bias": (10,),
    }
    assert sum(p.numel() for p in MODELS[name](10).parameters()) == PUBLISHED[name]


def test_with_batch_norm_there_are_three_layers_of_it_behind_the_convolutions_and_the_rest_is_the_same():
    plain, normed = MODELS["lenet5"](10).state_dict(), MODELS["lenet5_bn"](10)
    kept = {key: value.shape for key, value in normed.state_dict().items() if not key.startswith("bn")}
    assert kept == {key: value.shape for key, value in plain.items()}
    assert [len(layer.running_mean) for layer in (normed.bn1, normed.bn2, normed.bn3)] == [6, 16, 120]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_forward_pass_is_three_convolutions_two_pools_and_two_linear_layers(batch_norm):
    network, x = LeNet5((2, 3, 4, 5), 7, batch_norm).eval(), torch.randn(2, 1, 32, 32)
    norms = [None] * 3
    if batch_norm:
        norms = [network.bn1, network.bn2, network.bn3]
        for norm in norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    state, out = network.state_dict(), x
    for i, norm in enumerate(norms, start=1):
        out = F.conv2d(out, state[f"conv{i}.weight"], state[f"conv{i}.bias"])
        if norm is not None:
            out = (out - norm.running_mean.view(1, -1, 1, 1)) / (norm.running_var.view(1, -1, 1, 1) + 1e-5).sqrt()
        out = out.clamp(min=0)
        if i < 3:
            out = out.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    assert out.shape == (2, 4, 1, 1)
    hidden = (out.flatten(1) @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)
    torch.testing.assert_close(network(x), hidden @ state["fc2.weight"].T + state["fc2.bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("data", ["mnist", "tiny_imagenet"])
def test_it_reads_grey_images_of_32_pixels_whatever_the_data_are(name, data):
    spec = DATASETS[data]
    classifier = registry.classifier(name, spec)
    assert (classifier.channels, classifier.img_size) == (1, (32, 32))
    assert classifier.network.conv1.in_channels == 1 and classifier.head is classifier.network.fc2
    assert fitted(classifier, name, spec.shape, FP32) == []
    x = torch.rand(3, *spec.shape)
    assert classifier(x).shape == (3, spec.num_classes)
    assert len(classifier.norm_layers) == (3 if name == "lenet5_bn" else 0)


def test_it_sees_normalised_images_of_mnist_with_mean_0_and_deviation_1():
    """Not those of three colours that average out on their way to grey."""
    spec, seen = DATASETS["mnist"], []
    classifier = registry.classifier("lenet5", spec).eval()
    classifier.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    generator = NormalisedNetwork(8, 8, spec.img_size, spec.shape[0], mean=spec.mean, std=spec.std).train()
    classifier(generator(torch.randn(64, 8)))
    assert seen[0].mean().abs() < 1e-3 and abs(seen[0].std() - 1) < 1e-2


def test_another_number_of_channels_is_built_where_it_is_asked_for():
    classifier = registry.classifier("lenet5", DATASETS["mnist"], InputFormat(channels=3))
    assert classifier.channels == classifier.network.conv1.in_channels == 3
    assert classifier(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_its_batch_norm_folds_into_its_convolutions_and_its_features_are_what_the_head_reads():
    classifier = registry.classifier("lenet5_bn", DATASETS["mnist"]).eval()
    x = torch.rand(2, 3, 32, 32)
    plain = folded(classifier)
    assert plain.norm_layers == [] and torch.allclose(plain(x), classifier(x), atol=1e-4)
    logits, features = logits_and_features(classifier, x)
    assert features.shape == (2, 84) and torch.equal(classifier.head(features), logits)
