"""A classifier takes pixels, brings its own input format, and gives exact logits; features are read off any network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CLASSES,
    MEAN,
    SIZE,
    STD,
    logits_and_features,
    same_state,
    small_classifier,
    small_network,
    state_of,
    user_error,
)
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from datafree.models.classifier import Classifier, duplicate


def wrapped(network, size=SIZE):
    return Classifier(network, "own", CLASSES, size, MEAN, STD)


def test_pixels_are_normalised_channel_by_channel_before_the_network_sees_them():
    model, x = small_classifier(1).eval(), torch.rand(2, 3, SIZE, SIZE)
    by_hand = torch.stack([(x[:, c].double() - MEAN[c]) / STD[c] for c in range(3)], 1)
    normalised = model.normalise(x)
    torch.testing.assert_close(normalised.double(), by_hand, rtol=1e-6, atol=1e-6)
    assert normalised.is_contiguous()
    model.memory_format = torch.channels_last
    assert model.normalise(x).is_contiguous(memory_format=torch.channels_last)
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
    model = Classifier(many_close_logits(), "own", 1000, SIZE, MEAN, STD).eval()
    x = torch.rand(64, 3, SIZE, SIZE)
    model = copy.deepcopy(model) if copied else model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = logits_and_features(model, x)
        rounded = F.linear(features, model.head.weight, model.head.bias)
        assert torch.equal(model(x), logits) and logits.dtype == torch.float32
    head = model.network.fc
    by_hand = F.linear(features.double(), head.weight.double(), head.bias.double())
    assert torch.equal(logits.argmax(1), by_hand.argmax(1))
    assert (rounded.argmax(1) != by_hand.argmax(1)).any()  # what autocast would have made of it
    torch.testing.assert_close(logits.double(), by_hand, rtol=1e-5, atol=1e-5)


def test_so_are_those_of_a_head_that_is_a_convolution():
    linear, model = many_close_logits().fc, many_close_logits()
    body, head = model, nn.Conv2d(8, 1000, 1)
    head.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    body.fc = nn.Sequential(nn.Unflatten(1, (8, 1, 1)), head, nn.Flatten())
    model = Classifier(body, "own", 1000, SIZE, MEAN, STD).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = logits_and_features(model, torch.rand(64, 3, SIZE, SIZE))
    features = features.flatten(1).double()
    by_hand = F.linear(features, linear.weight.double(), linear.bias.double())
    assert logits.dtype == torch.float32 and torch.equal(logits.argmax(1), by_hand.argmax(1))
    model.release()
    assert type(head) is nn.Conv2d


def test_a_copy_is_independent():
    model = small_classifier(1)
    other, before = copy.deepcopy(model), state_of(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert same_state(state_of(model), before) and other.head is other.network.fc is not model.head
    assert (other.name, other.num_classes, other.img_size) == ("small", CLASSES, (SIZE, SIZE))


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
    logits, features = logits_and_features(model, x)
    assert torch.equal(logits, model(x)) and torch.equal(features, network.body(model.normalise(x)))
    (features * torch.randn(3, 6)).sum().backward()
    assert x.grad.any() and network.stem.weight.grad.any() and network.top.weight.grad is None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_network_whose_features_cannot_be_read_has_none():
    class Skipping(OwnNetwork):
        def forward(self, x):
            return self.stem(x.flatten(1))[:, :CLASSES]

    assert logits_and_features(wrapped(Skipping()), torch.rand(1, 3, SIZE, SIZE))[1] is None
    headless = wrapped(nn.Sequential(nn.Conv2d(3, CLASSES, SIZE), nn.Flatten()))
    with torch.autocast("cpu", torch.bfloat16):
        logits = headless(torch.rand(1, 3, SIZE, SIZE))
    assert headless.head is None and logits.shape == (1, CLASSES) and logits.dtype == torch.float32
    assert logits_and_features(headless, torch.rand(1, 3, SIZE, SIZE))[1] is None


class Answering(nn.Module):
    """Logits in one of the dresses that networks give them."""

    def __init__(self, dress):
        super().__init__()
        self.inner, self.dress = small_network(1), dress

    def forward(self, x):
        return self.dress(self.inner(x), x)


class Output:
    """As transformers' models give it."""

    def __init__(self, logits):
        self.logits, self.hidden_states = logits, None


DRESSES = {
    "a tuple, features first": lambda logits, x: (x, logits),
    "a list with an auxiliary head behind": lambda logits, x: [logits, 2 * logits],
    "a dict of logits": lambda logits, x: {"features": x.mean((2, 3)), "logits": logits},
    "a dict of another name": lambda logits, x: {"features": x, "out": logits},
    "an object": lambda logits, x: Output(logits),
    "a map of one pixel": lambda logits, x: logits[:, :, None, None],
    "a tuple of such a map": lambda logits, x: (x, logits[:, :, None, None]),
    "a row of one pixel": lambda logits, x: logits[:, :, None],
    "one token": lambda logits, x: logits[:, None],
    "a dict in a dict": lambda logits, x: {"out": {"logits": logits, "aux": x}},
    "a tuple in a dict": lambda logits, x: {"x": x, "out": (logits, x.mean((2, 3)))},
    "an object in a tuple": lambda logits, x: (x, Output(logits)),
}


def features_of(logits):
    """As wide as the logits, and not them."""
    return logits.flip(1).tanh()


DRESSES |= {  # of the same width
    "an embedding named": lambda logits, x: {"embedding": features_of(logits), "prediction": logits},
    "outputs named": lambda logits, x: {"z": features_of(logits), "outputs": logits},
    "logits among outputs": lambda logits, x: {"output": logits.softmax(1), "logits": logits},
    "an auxiliary head named": lambda logits, x: {"aux_logits": features_of(logits), "cls_logits": logits},
    "features first, no names": lambda logits, x: (features_of(logits), logits),
    "a softmax behind": lambda logits, x: (logits, logits.softmax(1)),
    "a softmax before, without names that say so": lambda logits, x: {"p": logits.softmax(1), "q": logits},
}


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_logits_are_found_in_whatever_a_network_returns(dress):
    model, x = wrapped(Answering(dress)).eval(), torch.rand(4, 3, SIZE, SIZE)
    assert torch.equal(model(x), wrapped(small_network(1)).eval()(x))


class TwoWide(nn.Module):
    """An embedding as wide as the classes, which the head reads; or two heads, of which training answers with both."""

    def __init__(self, two_heads=False, always=False, scale=1):
        super().__init__()
        self.body, self.two_heads, self.always, self.scale = nn.Linear(3, CLASSES), two_heads, always, scale
        self.head, self.aux = nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        embedding = self.body(x.mean((2, 3)))
        logits = self.scale * self.head(embedding.relu())
        if not self.two_heads:
            return embedding, logits
        return (self.aux(embedding), logits) if self.training or self.always else logits


@pytest.mark.parametrize("how", [{}, {"scale": 16}, {"two_heads": True}])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_of_tensors_without_names_the_logits_are_what_the_last_layer_gives(how, mode):
    model, x = wrapped(TwoWide(**how)), torch.rand(4, 3, SIZE, SIZE)
    network = getattr(model, mode)().network
    by_hand = network.scale * network.head(network.body(model.normalise(x).mean((2, 3))).relu())
    assert torch.equal(model(x), by_hand) and torch.equal(model(x), by_hand)
    assert not any(module._forward_hooks for module in model.modules())
    assert network.training == (mode == "train") and copy.deepcopy(model).picked == model.picked


def test_heads_that_cannot_be_told_apart_are_named_and_none_is_taken():
    with user_error("own answers several tensors that may be its logits: [0], [1]", "logits alone"):
        wrapped(TwoWide(two_heads=True, always=True))(torch.rand(4, 3, SIZE, SIZE))


@pytest.mark.parametrize("dress", [lambda z: z, lambda z: z[:, 0], lambda z: {"out": z, "features": z.expand(-1, 7)}])
def test_of_two_classes_one_logit_will_do_whose_sigmoid_is_the_softmax(dress):
    network = small_network(1, num_classes=1)
    model, x = Classifier(network, "own", 2, SIZE, MEAN, STD).eval(), torch.rand(4, 3, SIZE, SIZE)
    z = network(model.normalise(x))
    network.register_forward_hook(lambda module, args, answer: dress(answer))
    torch.testing.assert_close(model(x).softmax(1), torch.cat([1 - z.sigmoid(), z.sigmoid()], 1))


NO_LOGITS = {
    "logits of other classes, and features": (
        lambda logits, x: {"embedding": logits, "prediction": logits[:, 1:], "z": logits},
        f"own has {CLASSES - 1} classes, and the data have {CLASSES}: it answers a dict of (2, {CLASSES}), ",
    ),
    "a dense map named so, and features": (lambda logits, x: {"logits": x, "z": logits}, "own answers a dict of"),
    "features alone": (lambda logits, x: {"features": logits}, "own answers a dict of"),
    "numbers of classes": (lambda logits, x: logits.long(), "own answers"),
    "other classes": (
        lambda logits, x: logits[:, 1:],
        f"own has {CLASSES - 1} classes, and the data have {CLASSES}: it answers a tensor (2, {CLASSES - 1})",
    ),
    "of other classes, (B, C, 1, 1)": (
        lambda logits, x: logits[:, 1:, None, None],
        f"has {CLASSES - 1} classes",
    ),
    "other classes, and features": (
        lambda logits, x: {"features": x.flatten(1), "logits": logits[:, 1:]},
        f"has {CLASSES - 1} classes",
    ),
    "two tensors, either of other classes": (
        lambda logits, x: (logits[:, 1:], logits[:, 2:]),
        f"a tuple of (2, {CLASSES - 1}), (2, {CLASSES - 2}), not logits of {CLASSES} classes",
    ),
    "a dense map": (lambda logits, x: logits[:, :, None, None].expand(-1, -1, 2, 2), f"a tensor (2, {CLASSES}, 2, 2)"),
    "a tuple of others": (lambda logits, x: (x.mean(1), None), f"a tuple of (2, {SIZE}, {SIZE}), NoneType"),
    "nothing": (lambda logits, x: None, "own answers a NoneType"),
}


@pytest.mark.parametrize(("dress", "words"), NO_LOGITS.values(), ids=NO_LOGITS)
def test_what_holds_no_logits_is_described(dress, words):
    with user_error(words):
        wrapped(Answering(dress))(torch.rand(2, 3, SIZE, SIZE))


def test_grey_and_colour_images_become_what_the_network_takes():
    colours, grey = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    luma = (0.299 * colours[:, 0] + 0.587 * colours[:, 1] + 0.114 * colours[:, 2])[:, None]
    of_grey = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), "own", 5, 4, (0.5,), (0.25,))
    of_colours = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), "own", 5, 4, (0.5,) * 3, (0.25,) * 3)
    assert (of_grey.channels, of_colours.channels) == (1, 3)
    torch.testing.assert_close(of_grey.normalise(colours), (luma - 0.5) / 0.25)
    torch.testing.assert_close(of_colours.normalise(grey), ((grey - 0.5) / 0.25).expand(2, 3, 4, 4))


def test_sizes_that_are_not_square_are_heights_and_widths():
    model = Classifier(small_network(1), "own", CLASSES, (6, 9), MEAN, STD)
    assert model.normalise(torch.rand(2, 3, 4, 4)).shape == (2, 3, 6, 9)


def test_the_head_may_be_a_convolution_and_features_are_then_its_input():
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    network = nn.Sequential(body, nn.Conv2d(6, CLASSES, 1), nn.AdaptiveAvgPool2d(1))
    model, x = wrapped(network), torch.rand(2, 3, SIZE, SIZE)
    logits, features = logits_and_features(model, x)
    assert model.head is network[1]
    torch.testing.assert_close(features, body(model.normalise(x)))
    torch.testing.assert_close(logits, F.linear(features.mean((2, 3)), model.head.weight.flatten(1), model.head.bias))


def test_frozen_batch_norm_counts_as_what_remembers_statistics():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    assert wrapped(network).norm_layers == [network[1]]


def test_what_modules_keep_of_an_earlier_pass_is_no_obstacle_to_a_copy():
    network = small_network(1)
    network.seen = {"maps": [network.conv1.weight * 2]}
    network.w = network.fc.weight * 2  # as the older weight_norm keeps it
    model, x = wrapped(network).eval(), torch.rand(2, 3, SIZE, SIZE)
    copied = duplicate(model)
    assert torch.equal(copied(x), model(x)) and torch.equal(copied.network.w, network.w)
    assert torch.equal(copied.network.seen["maps"][0], network.seen["maps"][0]) and copied.network.w is not network.w


@pytest.mark.filterwarnings("ignore")  # PyTorch's on quantisation
def test_a_quantised_network_is_called_that():
    network = torch.ao.quantization.quantize_dynamic(small_network(1), {nn.Linear}, dtype=torch.qint8)
    with user_error("own is quantised", "in floating point"):
        wrapped(network)


@pytest.mark.slow
def test_a_compiled_network_is_taken_as_it_was_before():
    network = small_network(1)
    assert Classifier(torch.compile(network), "own", CLASSES, SIZE, MEAN, STD).network is network
