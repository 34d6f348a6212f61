"""A frozen classifier answers as before, with less work."""

import pytest
import torch
from conftest import BF16, CLASSES, FP16, FP32, MEAN, SIZE, STD, SmallClassifier, same_state, small_classifier, state_of
from torch import nn

import registry
from datafree.engine.frozen import folded, frozen
from datafree.models.classifier import Classifier


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def wrapped(network, size=SIZE):
    """In eval mode, having met noise."""
    model = Classifier(network, "own", CLASSES, size, MEAN, STD).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(8, 3, size, size))
    return model.eval()


@pytest.mark.parametrize(("name", "left"), [("resnet20", 0), ("wrn16_1", 7), ("vgg8", 0), ("shufflenetv2", 0)])
def test_folding_leaves_the_answers_and_takes_the_batch_norms_behind_convolutions(name, left):
    model, x = wrapped(registry.MODELS[name](CLASSES), 16), torch.rand(4, 3, 16, 16)
    before = state_of(model)
    copied = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), model(x), rtol=1e-3, atol=1e-4)
    assert norms(copied) == left < norms(model) and same_state(state_of(model), before)


class ReadTwice(SmallClassifier):
    """What a convolution gives is wanted before its BatchNorm, too."""

    def forward(self, x):
        x = self.conv1(x)
        x = self.conv2((self.bn1(x) + x).relu())
        return self.fc(self.bn2(x).relu().mean((2, 3)))


class CalledTwice(SmallClassifier):
    """One BatchNorm behind two convolutions."""

    def forward(self, x):
        x = self.bn1(self.conv1(x)) + self.bn1(self.conv1(-x))
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [ReadTwice, CalledTwice])
def test_what_would_answer_otherwise_is_left_as_it_is(kind):
    model, x = wrapped(kind()), torch.rand(4, 3, SIZE, SIZE)
    copied = folded(model)
    assert norms(copied) == 1 and not copied.training
    torch.testing.assert_close(copied(x), model(x))


def test_a_network_that_cannot_take_images_of_its_size_comes_back_as_it_is():
    model = Classifier(registry.MODELS["vgg8"](3), "vgg8", 3, 1, MEAN, STD)
    assert norms(folded(model)) == norms(model)


@pytest.mark.parametrize("compute", [BF16, FP16])
def test_frozen_means_no_gradient_no_training_and_rounded_weights_that_answer_to_the_last_bit_alike(compute):
    model, x = small_classifier(3).eval(), torch.rand(4, 3, SIZE, SIZE)
    ready, full = (frozen(small_classifier(3), each) for each in (compute, FP32))
    with torch.no_grad(), compute.autocast():
        assert torch.equal(ready(x), model(x))
    network = ready.network
    assert network.conv1.weight.dtype == compute.dtype
    assert {ready.mean.dtype, network.bn1.weight.dtype, network.fc.weight.dtype} == {torch.float32}
    assert not ready.training and not any(parameter.requires_grad for parameter in ready.parameters())
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
