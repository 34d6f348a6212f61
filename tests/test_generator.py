"""g1, g2, d and G: arithmetic against plain layers, published names and sizes, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SIZE, small_generator

from datafree.methods.aeahl_rg import build_generator
from datafree.models.generator import (
    Decoder,
    GenerativeNetwork,
    ImageGenerator,
    NormalisedNetwork,
    ReusableGenerator,
    StandardisedNetwork,
    UpsampledConv,
    draw_anew,
    draw_as_dcgan,
)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5)])
def test_upsampled_conv_equals_interpolate_and_conv_in_value_and_both_gradients(height, width):
    layer = UpsampledConv(3, 4).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    by_hand = F.conv2d(F.interpolate(y, scale_factor=2, mode="nearest"), weight, padding=1)
    value = layer(x)
    assert value.shape == (2, 4, 2 * height, 2 * width)
    torch.testing.assert_close(value, by_hand, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(by_hand)
    by_hand.backward(towards)
    value.backward(towards)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-12, atol=1e-12)


def test_under_bf16_autocast_the_taps_are_summed_in_fp32_and_rounded_once():
    layer, x = UpsampledConv(3, 4), torch.randn(2, 3, 5, 5)
    near, far = [(2,), (1, 2), (0, 1), (0,)], torch.zeros(3, 4, 4, 4)  # the taps that reach each transposed position
    for a in range(4):
        for b in range(4):
            far[:, :, a, b] = sum(layer.weight.detach()[:, :, k, m] for k in near[a] for m in near[b]).T
    by_hand = F.conv_transpose2d(x.bfloat16(), far.bfloat16(), stride=2, padding=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), by_hand, rtol=0, atol=1e-6)


def test_generative_network_has_the_released_names_and_number_of_parameters():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["l1.0.weight", "l1.0.bias"]
    expected += [f"conv_blocks.0.{name}" for name in norm]
    expected += ["conv_blocks.2.weight"] + [f"conv_blocks.3.{name}" for name in norm]
    expected += ["conv_blocks.6.weight"] + [f"conv_blocks.7.{name}" for name in norm]
    expected += ["conv_blocks.9.weight", "conv_blocks.9.bias"]
    assert list(GenerativeNetwork(4, 2, 32).state_dict()) == expected  # what folds the taps is not saved
    with torch.device("meta"):
        published, large = GenerativeNetwork(256, 64, 32), GenerativeNetwork(256, 64, 224)
    assert sum(parameter.numel() for parameter in published.parameters()) == 2_328_899
    assert large.l1[0].out_features == 2 * 64 * 7 * 7  # not 2 * 64 * 56 * 56, which makes 103 M parameters


def generate_by_hand(g, z, training):
    """The network with plain functions, from the released names."""
    state = g.state_dict()

    def norm(x, name):
        kept = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return F.batch_norm(x, *kept, state[f"{name}.weight"], state[f"{name}.bias"], training)

    x = z @ state["l1.0.weight"].T + state["l1.0.bias"]
    x = x.view(len(z), -1, g.config["img_size"][0] // 4, g.config["img_size"][1] // 4)
    x = norm(x, "conv_blocks.0")
    x = F.conv2d(F.interpolate(x, scale_factor=2), state["conv_blocks.2.weight"], padding=1)
    x = F.leaky_relu(norm(x, "conv_blocks.3"), 0.2)
    x = F.conv2d(F.interpolate(x, scale_factor=2), state["conv_blocks.6.weight"], padding=1)
    x = F.leaky_relu(norm(x, "conv_blocks.7"), 0.2)
    return F.conv2d(x, state["conv_blocks.9.weight"], state["conv_blocks.9.bias"], padding=1).sigmoid()


@pytest.mark.parametrize("training", [True, False])
def test_generative_network_is_the_specified_chain_of_layers(training):
    g = GenerativeNetwork(6, 3, 16).double().train(training)
    for module in g.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    z = torch.randn(5, 6, dtype=torch.float64)
    by_hand = generate_by_hand(g, z, training)
    torch.testing.assert_close(g(z), by_hand, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(g.to(memory_format=torch.channels_last)(z), by_hand, rtol=1e-10, atol=1e-10)


def test_decoder_is_the_specified_chain_of_layers():
    d = Decoder().train()
    x = torch.rand(2, 3, 9, 7)
    state, by_hand = d.state_dict(), x
    for name in ("Conv2", "Conv3", "Conv4"):
        by_hand = F.conv2d(by_hand, state[f"layers.{name}.conv.weight"], state[f"layers.{name}.conv.bias"], padding=1)
        mean, variance = by_hand.mean((0, 2, 3), keepdim=True), by_hand.var((0, 2, 3), unbiased=False, keepdim=True)
        weight, bias = state[f"layers.{name}.bn.weight"], state[f"layers.{name}.bn.bias"]
        by_hand = (by_hand - mean) / (variance + 1e-5).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
        by_hand = by_hand.clamp(min=0)
    by_hand = F.conv2d(by_hand, state["layers.Conv5.conv.weight"], state["layers.Conv5.conv.bias"], padding=1).sigmoid()
    torch.testing.assert_close(d(x), by_hand, rtol=1e-4, atol=1e-5)
    assert [state[f"layers.Conv{n}.conv.weight"].shape[:2] for n in (2, 3, 4, 5)] == [(8, 3), (16, 8), (8, 16), (3, 8)]


@pytest.mark.parametrize("size", [32, 64, 224])
def test_images_have_the_asked_size_and_lie_in_0_1(size):
    G = build_generator(seed=0, nz=5, ngf=2, shape=(3, size, size)).eval()
    with torch.no_grad():
        for x in (G(torch.randn(2, 5)), G.g1(torch.randn(2, 5)), G(1e3 * torch.randn(2, 5))):
            assert x.shape == (2, 3, size, size) and x.dtype == torch.float32
            assert x.min() >= 0 and x.max() <= 1 and x.std() > 0


@pytest.mark.parametrize(
    ("size", "grid", "first"),
    [(2, (1, 1), (4, 4)), (30, (8, 8), (32, 32)), (84, (3, 3), (96, 96)), ((20, 33), (5, 9), (20, 36))],
)
def test_a_size_that_cannot_be_halved_often_enough_is_the_middle_of_the_next_that_can(size, grid, first):
    g, z = GenerativeNetwork(5, 2, size, channels=1).eval(), torch.randn(2, 5)
    height, width = size if isinstance(size, tuple) else (size, size)
    whole = g.conv_blocks(g.l1(z).view(2, 4, *grid))
    top, left = (first[0] - height) // 2, (first[1] - width) // 2
    assert g.grid == grid and whole.shape == (2, 1, *first)
    assert torch.equal(g(z), whole[:, :, top : top + height, left : left + width])


def test_generator_decodes_the_mean_of_both_networks_on_the_same_noise_whatever_their_widths():
    G = ReusableGenerator(GenerativeNetwork(5, 2, SIZE), GenerativeNetwork(5, 7, SIZE), Decoder())
    z = torch.randn(4, 5)
    assert torch.equal(G(z), G.d((G.g1(z) + G.g2(z)) / 2))


def test_images_are_fp32_with_fp32_steps_under_bf16_autocast():
    G = small_generator().eval()
    with torch.no_grad():
        G.d.layers.Conv5.conv.bias += 3  # bright images: bf16 has 128 steps of 1/256 in [0.5, 1]
        z = torch.randn(16, G.g1.config["nz"])
        with torch.autocast("cpu", torch.bfloat16):
            x = G(z)
        full = G(z)
    assert x.dtype == torch.float32
    assert not torch.equal(x, x.bfloat16().float())
    torch.testing.assert_close(x, full, rtol=0, atol=0.02)


def test_first_values_drawn_anew_are_distributed_as_pytorchs_and_of_the_stream_alone():
    g, first = GenerativeNetwork(9, 16, SIZE), GenerativeNetwork(9, 16, SIZE).state_dict()
    bounds = {"l1.0": 1 / 3, "conv_blocks.2": 1 / 288**0.5, "conv_blocks.6": 1 / 288**0.5, "conv_blocks.9": 1 / 12}
    with torch.no_grad():
        g(torch.randn(4, 9))
        for parameter in g.parameters():
            parameter.fill_(7)
    draw_anew(g, torch.Generator().manual_seed(3))
    for name, value in g.state_dict().items():
        layer, _, what = name.rpartition(".")
        if layer not in bounds:
            assert torch.equal(value, first[name]), name  # of norms, the running statistics among them
            continue
        assert 0.5 * bounds[layer] < value.abs().max() <= bounds[layer] and value.unique().numel() > 1, name
        if what == "weight":
            deviations = [each.std().item() for each in (value, first[name])]
            assert deviations == pytest.approx(2 * [bounds[layer] / 3**0.5], rel=0.1), name
    torch.manual_seed(1)
    other = GenerativeNetwork(9, 16, SIZE)
    draw_anew(other, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(g.parameters(), other.parameters(), strict=True))


def test_an_image_generator_is_that_network_its_pixels_in_fp32_under_autocast():
    network, pixels, z = GenerativeNetwork(6, 2, SIZE), ImageGenerator(6, 2, SIZE), torch.randn(64, 6)
    pixels.load_state_dict(network.state_dict())
    assert torch.equal(pixels(z), network(z)) and pixels.config == network.config
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half, full = network(z), pixels(z)
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(full, half.float(), rtol=0, atol=2**-8)
    assert not torch.equal(full, full.bfloat16().float())


def test_a_network_drawn_as_dcgans_is_has_the_published_spreads_nothing_of_before_and_depends_on_the_stream_alone():
    networks = [ImageGenerator(64, 16, 16) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        network(torch.randn(8, 64))
        draw_as_dcgan(network, torch.Generator().manual_seed(seed))
    first, same, other = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], same[name]) for name in first)
    new = ImageGenerator(64, 16, 16).state_dict()
    for name, value in first.items():
        if name.endswith("weight"):
            norm = value.ndim == 1
            assert value.mean().item() == pytest.approx(float(norm), abs=0.02) and not torch.equal(value, other[name])
            assert value.std().item() == pytest.approx(0.02, rel=0.5 if norm else 0.15), name
        elif name.endswith("bias"):
            assert not value.any()
        else:
            assert torch.equal(value, new[name])
    assert all(parameter.requires_grad for parameter in networks[0].parameters())


MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.25, 0.3)


def test_standardised_images_have_the_datas_mean_and_deviation_before_the_sigmoid_bends_them():
    network, z = StandardisedNetwork(6, 4, 8, 3, mean=MEAN, std=STD).train(), torch.randn(32, 6)
    with torch.no_grad():
        network.conv_blocks[-3].weight.mul_(50)  # whatever the last convolution gives
        network.conv_blocks[-3].bias.fill_(9)
    x = network(z)
    assert x.shape == (32, 3, 8, 8) and x.min() > 0 and x.max() < 1
    for c, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        logits = torch.logit(x[:, c].double())
        assert logits.mean().item() == pytest.approx(math.log(mean / (1 - mean)), abs=1e-3)
        assert mean * (1 - mean) * logits.std().item() == pytest.approx(std, rel=1e-2)
    grey = StandardisedNetwork(6, 4, 8, 1, mean=(0.5,), std=(0.02,)).train()(z)  # where the sigmoid is straight
    assert grey.mean().item() == pytest.approx(0.5, abs=1e-3) and grey.std().item() == pytest.approx(0.02, rel=0.02)


def test_normalised_images_have_exactly_the_datas_mean_and_deviation_and_pixels_beyond_black_and_white():
    network, z = NormalisedNetwork(6, 4, 8, 3, mean=MEAN, std=STD).train(), torch.randn(32, 6)
    x, before = network(z), network.conv_blocks[:-2](network.l1(z).view(32, -1, 2, 2)).tanh()
    for c, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert x[:, c].mean().item() == pytest.approx(mean, abs=1e-5)
        assert x[:, c].std(correction=0).item() == pytest.approx(std, rel=1e-3)
        n = (before[:, c] - before[:, c].mean()) / before[:, c].std(correction=0)
        torch.testing.assert_close(x[:, c], mean + std * n, rtol=1e-3, atol=1e-4)
    assert x.min() < 0 and x.max() > 1 and x.dtype == torch.float32
    trained = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name: p.shape for name, p in GenerativeNetwork(6, 4, 8, 3).named_parameters()}
    network.take((0.1,) * 3, (0.2,) * 3)
    assert network(z).mean().item() == pytest.approx(0.1, abs=1e-5)


def test_what_stands_for_the_data_is_not_trained_and_black_and_white_means_are_bounded():
    network = StandardisedNetwork(6, 4, 8, 3, mean=(0.0, 1.0, 0.5), std=(1.0, 0.4, 1.0))
    plain = GenerativeNetwork(6, 4, 8, 3)
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    torch.testing.assert_close(frozen["conv_blocks.standardised.weight"], torch.tensor([0.5 / 0.09, 0.4 / 0.09, 2.0]))
    torch.testing.assert_close(frozen["conv_blocks.standardised.bias"].sigmoid(), torch.tensor([0.1, 0.9, 0.5]))
    assert len(frozen) == 2
    shapes = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    assert shapes == {name: p.shape for name, p in plain.named_parameters()}
