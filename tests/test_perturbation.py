"""P against plain layers, on any size, without random draws."""

import pytest
import torch
import torch.nn.functional as F
from datafree.randomness import initialising
from torch import nn

from datafree.models.perturbation import PerturbationNetwork, ReflectConv3x3, ReflectConv7x7, filtered_conv


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (4, 12)])
def test_filtered_conv_is_the_reflect_padded_convolution(size):
    x, weight = draw(2, 3, *size, dtype=torch.float64), draw(5, 3, 3, 3, seed=1, dtype=torch.float64)
    torch.testing.assert_close(filtered_conv(x, weight), convolved_by_hand(x, weight))


def test_filtered_conv_has_the_gradients_of_the_reflect_padded_convolution():
    x, weight = draw(2, 3, 8, 8, dtype=torch.float64), draw(5, 3, 3, 3, seed=1, dtype=torch.float64)
    inputs, grad = (x.requires_grad_(), weight.requires_grad_()), draw(2, 5, 8, 8, seed=2, dtype=torch.float64)
    plain = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight)
    for one, other in zip(
        torch.autograd.grad(filtered_conv(x, weight), inputs, grad),
        torch.autograd.grad(plain, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_filtered_conv_in_bf16_errs_by_less_than_two_per_cent():
    x, weight = draw(8, 64, 8, 8), draw(64, 64, 3, 3, seed=1)
    exact = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight)
    found = filtered_conv(x.bfloat16(), weight)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (6, 10), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reflect_conv3x3_is_the_plain_layer_whatever_the_size(size, dtype):
    with initialising(0, "conv"):
        conv = ReflectConv3x3(8)
    plain = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False)
    plain.load_state_dict(conv.state_dict())
    x = draw(2, 8, *size)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = conv(x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert (found.float() - plain(x)).norm() < tolerance * plain(x).norm()


@pytest.mark.parametrize("size", [(8, 8), (4, 10)])
def test_reflect_conv7x7_is_the_convolution_by_hand(size):
    conv = ReflectConv7x7(4).double()
    x = draw(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), convolved_by_hand(x, conv.weight) + conv.bias.view(1, 3, 1, 1))


def test_reflect_conv7x7_has_the_gradients_of_the_plain_layer():
    conv, plain = ReflectConv7x7(4).double(), nn.Conv2d(4, 3, 7, padding=3, padding_mode="reflect").double()
    plain.load_state_dict(conv.state_dict())
    x, grad = draw(2, 4, 8, 8, dtype=torch.float64).requires_grad_(), draw(2, 3, 8, 8, seed=1, dtype=torch.float64)
    found = torch.autograd.grad(conv(x), [x, conv.weight, conv.bias], grad)
    for one, other in zip(found, torch.autograd.grad(plain(x), [x, plain.weight, plain.bias], grad), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 32, 32), (2, 3, 12, 20), (1, 3, 64, 64)])
def test_perturbation_has_the_shape_of_the_images_and_stays_within_one(shape):
    P = network()
    with torch.no_grad():
        for P_in_mode in (P.train(), P.eval()):
            perturbation = P_in_mode(1000 * draw(*shape))
            assert perturbation.shape == shape
            assert perturbation.dtype == torch.float32
            assert perturbation.abs().max() <= 1


def test_bf16_channels_last_gives_nearly_what_fp32_gives():
    P, x = network(width=16), draw(4, 3, 32, 32)
    P.layers[-1].weight.data *= 5  # away from tanh's middle
    with torch.no_grad():
        exact = P(x)
        P.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = P(x.contiguous(memory_format=torch.channels_last))
    assert 0.2 < exact.abs().mean() < 0.8
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_every_parameter_gets_a_gradient():
    P = network().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = P(draw(2, 3, 32, 32)).square().mean()
    loss.backward()
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
    P = network(width=16, blocks=6)
    for module in P.modules():
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


def test_two_seeds_differ_and_one_seed_repeats():
    one, again = network(), network()
    with initialising(1, "P"):
        other = PerturbationNetwork(4, 2)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
