"""A classifier takes pixels, brings its own input format, and gives exact logits; features are read off any network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, MEAN, SIZE, STD, same_state, small_classifier, small_network, state_of, user_error
from torch import nn

from datafree.models.classifier import Classifier


def wrapped(network, size=SIZE):
    return Classifier(network, "own", CLASSES, size, MEAN, STD)


def test_pixels_are_normalised_channel_by_channel_before_the_network_sees_them():
    model, x = small_classifier(1).eval(), torch.rand(2, 3, SIZE, SIZE)
    by_hand = torch.stack([(x[:, c].double() - MEAN[c]) / STD[c] for c in range(3)], 1)
    normalised = model.normalise(x)
    torch.testing.assert_close(normalised.double(), by_hand, rtol=1e-6, atol=1e-6)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), small_network(1).eval()(by_hand.float()))


@pytest.mark.parametrize(("size", "given"), [(SIZE, 2 * SIZE), (SIZE, 5), (12, SIZE)])
def test_images_of_another_size_are_resized_before_they_are_normalised_and_carry_gradients(size, given):
    model, x = small_classifier(1, size=size).eval(), torch.rand(2, 3, given, given, requires_grad=True)
    resized = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.normalise(x), (resized - model.mean) / model.std)
    model(x).sum().backward()
    assert x.grad.abs().amax((2, 3)).min() > 0
    flat = torch.full((1, 3, given, given), 0.3)
    torch.testing.assert_close(
        model.normalise(flat), ((flat[..., :1, :1] - model.mean) / model.std).expand(1, 3, size, size)
    )


def test_state_dicts_are_those_of_the_network_inside():
    model, network = small_classifier(1), small_network(2)
    assert list(model.state_dict()) == list(network.state_dict())
    model.load_state_dict(network.state_dict())
    assert same_state(state_of(model), state_of(network)) and same_state(state_of(model.network), state_of(network))
    network.load_state_dict(small_classifier(3).state_dict())
    assert same_state(state_of(network), state_of(small_network(3)))
    with pytest.raises(RuntimeError, match=r"fc\.bias"):
        model.load_state_dict({key: value for key, value in network.state_dict().items() if key != "fc.bias"})


def many_close_logits():
    """1,000 classes whose logits lie within a few of bf16's steps."""
    network = small_network(1, num_classes=1000)
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[:1] + 1e-3 * torch.randn(1000, 8))
        network.fc.bias.copy_(3 + 1e-3 * torch.randn(1000))
    return network


@pytest.mark.parametrize("copied", [False, True])
def test_under_bf16_autocast_the_predicted_classes_are_those_of_an_fp32_head_on_the_same_features(copied):
    model, x = wrapped(many_close_logits()).eval(), torch.rand(64, 3, SIZE, SIZE)
    model = copy.deepcopy(model) if copied else model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = model.features(x)
        rounded = F.linear(features, model.head.weight, model.head.bias)
        assert torch.equal(model(x), logits) and logits.dtype == torch.float32
    head = model.network.fc
    by_hand = F.linear(features.double(), head.weight.double(), head.bias.double())
    assert torch.equal(logits.argmax(1), by_hand.argmax(1))
    assert (rounded.argmax(1) != by_hand.argmax(1)).any()  # what autocast would have made of it
    torch.testing.assert_close(logits.double(), by_hand, rtol=1e-5, atol=1e-5)


def test_a_copy_is_independent():
    model = small_classifier(1)
    other, before = copy.deepcopy(model), state_of(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert same_state(state_of(model), before) and other.head is other.network.fc is not model.head
    assert (other.name, other.num_classes, other.img_size) == ("small", CLASSES, SIZE)


class OwnNetwork(nn.Module):
    """What a user may bring: other layer names, no pooling, the head called by keyword, norms without statistics."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(3 * SIZE**2, 6), nn.BatchNorm1d(6)
        self.forgetful, self.layer_norm = nn.BatchNorm1d(6, track_running_stats=False), nn.LayerNorm(6)
        self.top = nn.Linear(6, CLASSES)

    def body(self, x):
        return self.layer_norm(self.forgetful(self.norm(self.stem(x.flatten(1))))).tanh()

    def forward(self, x):
        return self.top(input=self.body(x))


def test_features_come_from_a_users_network_without_a_special_forward_and_leave_no_hook():
    network, x = OwnNetwork(), torch.rand(3, 3, SIZE, SIZE, requires_grad=True)
    model = wrapped(network)
    assert model.norm_layers == [network.norm] and model.head is network.top
    logits, features = model.features(x)
    assert torch.equal(logits, model(x)) and torch.equal(features, network.body(model.normalise(x)))
    (features * torch.randn(3, 6)).sum().backward()
    assert x.grad.any() and network.stem.weight.grad.any() and network.top.weight.grad is None
    with pytest.raises(RuntimeError):
        model.features(torch.rand(1, 2, SIZE, SIZE))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_network_whose_features_cannot_be_read_is_the_users_to_mend():
    class Skipping(OwnNetwork):
        def forward(self, x):
            return self.stem(x.flatten(1))

    with user_error("forward of own does not call its last nn.Linear"):
        wrapped(Skipping()).features(torch.rand(1, 3, SIZE, SIZE))
    headless = wrapped(nn.Sequential(nn.Conv2d(3, CLASSES, SIZE), nn.Flatten()))
    with torch.autocast("cpu", torch.bfloat16):
        logits = headless(torch.rand(1, 3, SIZE, SIZE))
    assert headless.head is None and logits.shape == (1, CLASSES) and logits.dtype == torch.float32
    with user_error("own has no nn.Linear"):
        headless.features(torch.rand(1, 3, SIZE, SIZE))
