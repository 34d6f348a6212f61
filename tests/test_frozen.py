"""A frozen network answers as before, with less work."""

import pytest
import torch
from conftest import CPU, SIZE, SmallClassifier, small_classifier, state_of
from datafree.device import Compute
from datafree.models.frozen import folded, frozen
from torch import nn

import registry

BF16, FP32 = Compute(CPU, True, "in tests"), Compute(CPU, False, "in tests")


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def with_statistics(name):
    """A registry model that has met noise, in eval mode."""
    model = registry.MODELS[name](10).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize(("name", "left"), [("resnet20", 0), ("wrn16_1", 7), ("vgg8", 0), ("resnet18", 0)])
def test_folding_leaves_the_answers_and_takes_the_batch_norms_behind_convolutions(name, left):
    model, x = with_statistics(name), torch.randn(4, 3, 32, 32)
    before = state_of(model)
    copied = folded(model, 32)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), model(x), rtol=1e-3, atol=1e-4)
    assert norms(copied) == left < norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


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


@pytest.mark.parametrize(("kind", "left"), [(ReadTwice, 1), (CalledTwice, 1)])
def test_what_would_answer_otherwise_is_left_as_it_is(kind, left):
    model, x = kind().train(), torch.randn(4, 3, SIZE, SIZE)
    model(x + 1)
    copied = folded(model.eval(), SIZE)
    assert norms(copied) == left and not copied.training
    torch.testing.assert_close(copied(x), model(x))


def test_a_network_that_cannot_take_such_images_comes_back_as_it_is():
    model = registry.MODELS["vgg11"](3)
    assert norms(folded(model, 1)) == norms(model)


def test_frozen_means_no_gradient_no_training_and_bf16_weights_that_answer_to_the_last_bit_alike():
    model, x = small_classifier(3).eval(), torch.randn(4, 3, SIZE, SIZE)
    with BF16.autocast():
        expected = model(x)
    ready = frozen(small_classifier(3), BF16)
    with BF16.autocast():
        assert torch.equal(ready(x), expected)
    assert ready.conv1.weight.dtype == torch.bfloat16 and ready.bn1.weight.dtype == torch.float32
    assert not ready.training and not any(parameter.requires_grad for parameter in ready.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in frozen(small_classifier(3), FP32).parameters())
