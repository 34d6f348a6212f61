"""P against plain layers, on any size."""

import pytest
import torch
from torch import nn

from datafree.engine.randomness import initialising
from datafree.models.perturbation import PerturbationNetwork, ReflectConv


def network(width: int = 4, blocks: int = 2) -> PerturbationNetwork:
    with initialising(0, "P"):
        return PerturbationNetwork(width, blocks)


def reflected(position: int, size: int) -> int:
    """The index inside 0..size-1 that a position outside mirrors, the edge itself not repeated."""
    if position < 0:
        return -position
    return 2 * (size - 1) - position if position >= size else position


def convolved_by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stride 1, reflected at the edges, one multiplication of vectors at a time."""
    B, _, H, W = x.shape
    O, _, k, _ = weight.shape  # noqa: E741
    y = torch.zeros(B, O, H, W, dtype=x.dtype)
    for i in range(H):
        for j in range(W):
            for a in range(k):
                for b in range(k):
                    row, column = reflected(i + a - k // 2, H), reflected(j + b - k // 2, W)
                    y[:, :, i, j] += x[:, :, row, column] @ weight[:, :, a, b].T
    return y


@pytest.mark.parametrize(("kernel", "size"), [(3, (4, 6)), (7, (4, 6))])
def test_reflect_conv_is_the_convolution_by_hand_and_no_detour_through_fp32_under_autocast(kernel, size):
    conv, x = ReflectConv(4, 3, kernel, bias=True), torch.randn(2, 4, *size)
    by_hand = convolved_by_hand(x.double(), conv.weight.double()) + conv.bias.double().view(1, 3, 1, 1)
    torch.testing.assert_close(conv(x).double(), by_hand, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x.bfloat16())
    assert found.dtype == torch.bfloat16 and (found - by_hand).norm() < 0.03 * by_hand.norm()


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
