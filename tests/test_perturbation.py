"""P against plain layers, on any size."""

import pytest
import torch
from torch import nn

from datafree.engine.randomness import initialising
from datafree.models.perturbation import PerturbationNetwork, ReflectConv


def network(width: int = 4, blocks: int = 2) -> PerturbationNetwork:
    with initialising(0, "P"):
        return PerturbationNetwork(width, blocks)


@pytest.mark.parametrize("kernel", [3, 7])
def test_reflect_conv_is_the_plain_layer_under_autocast_too(kernel):
    conv, x = ReflectConv(4, 3, kernel, bias=True), torch.randn(2, 4, 4, 6)
    plain = nn.Conv2d(4, 3, kernel, padding=kernel // 2, padding_mode="reflect")
    plain.load_state_dict(conv.state_dict())
    torch.testing.assert_close(conv(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x.bfloat16())
    assert found.dtype == torch.bfloat16 and (found - plain(x)).norm() < 0.03 * plain(x).norm()


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 12, 20), (1, 3, 64, 64)])
def test_perturbation_has_the_shape_of_the_images_and_stays_within_one(shape):
    P = network()
    with torch.no_grad():
        for P_in_mode in (P.train(), P.eval()):
            perturbation = P_in_mode(1000 * torch.randn(shape))
            assert perturbation.shape == shape and perturbation.dtype == torch.float32
            assert perturbation.abs().max() <= 1


def test_bf16_channels_last_gives_nearly_what_fp32_gives_and_a_gradient_to_every_parameter():
    P, x = network(width=16), torch.randn(4, 3, 32, 32)
    P.layers[-1].weight.data *= 5  # away from tanh's middle
    exact = P(x).detach()
    P.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = P(x.contiguous(memory_format=torch.channels_last))
    assert 0.2 < exact.abs().mean() < 0.8
    assert (found - exact).norm() < 0.05 * exact.norm()
    found.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in P.parameters())


def test_width_and_blocks_make_the_published_layers():
    with torch.device("meta"):
        P = PerturbationNetwork()
    convolutions = [module for module in P.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    channels = [(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions]
    down = [(3, 64, 7, 1), (64, 128, 3, 2), (128, 256, 3, 2)]
    up = [(256, 128, 3, 2), (128, 64, 3, 2), (64, 3, 7, 1)]
    assert channels == down + 12 * [(256, 256, 3, 1)] + up
    assert [conv.bias is not None for conv in convolutions] == 17 * [False] + [True]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in P.modules()) == 17


def test_weights_start_as_published():
    for module in network(width=16, blocks=6).modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            n = module.weight.numel()
            assert abs(module.weight.mean()) < 5 * 0.02 / n**0.5
            assert abs(module.weight.std() / 0.02 - 1) < 5 / (2 * n) ** 0.5
        if isinstance(module, nn.BatchNorm2d):
            n = module.weight.numel()
            assert abs(module.weight.mean() - 1) < 5 * 0.02 / n**0.5
            assert 0 < module.weight.std() < 0.05
        if getattr(module, "bias", None) is not None:
            assert module.bias.abs().max() == 0
