"""Moments and L_bn against sums written out in Python's float64."""

import math

import pytest
import torch

from datafree.losses import batchnorm
from datafree.losses.batchnorm import bn_loss, channel_moments, concatenated

SHAPES = [(4, 3, 5, 7), (6, 3, 9), (8, 3), (1, 3, 2, 2)]


@pytest.fixture(autouse=True, params=["kernels", "common operations"])
def operations(request, monkeypatch):
    """Those of CPU and CUDA, and those of any other device."""
    monkeypatch.setattr(batchnorm, "KERNELS", batchnorm.KERNELS if request.param == "kernels" else ())


def moments_by_hand(x):
    """Loops over channels in Python's float64."""
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].double().flatten().tolist()
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_mean_and_biased_variance_of_each_channel_with_autograds_gradients(shape):
    x = (torch.randn(shape) * 3 + 1).requires_grad_()
    found, weights = channel_moments(x), torch.randn(2, 3)
    for value, by_hand in zip(found, moments_by_hand(x.detach()), strict=True):
        assert value.dtype == torch.float32 and value.shape == (3,)
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-5, atol=1e-6)
    (torch.stack(found) * weights).sum().backward()

    y = x.detach().double().requires_grad_()
    dims = [d for d in range(y.ndim) if d != 1]
    mu = y.mean(dims, keepdim=True)
    (torch.stack([mu.flatten(), ((y - mu) ** 2).mean(dims)]) * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-6)
    assert torch.autograd.gradcheck(channel_moments, y.detach().requires_grad_())


def test_a_moment_that_nobody_uses_adds_nothing_to_the_gradient():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(channel_moments(x)[0].sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 100))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_input_of_16_bits_gives_fp32_moments_of_the_same_values_and_a_gradient_of_its_kind(dtype):
    x = (torch.randn(16, 3, 8, 8) + 4).to(dtype).requires_grad_()
    mean, variance = channel_moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    for value, by_hand in zip((mean, variance), moments_by_hand(x), strict=True):
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-5, atol=0)  # bf16 sums would be off by 1e-3
    (mean.sum() + variance.sum()).backward()
    y = x.detach().double().requires_grad_()
    (y.mean((0, 2, 3)).sum() + y.var((0, 2, 3), unbiased=False).sum()).backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-2, atol=1e-6)


def test_variance_survives_a_mean_far_from_zero():
    x = torch.randn(8, 3, 16, 16) + 1000
    torch.testing.assert_close(channel_moments(x)[1].double(), moments_by_hand(x)[1], rtol=1e-3, atol=0)


def test_bn_loss_sums_plain_norms_a_segment_with_unit_vectors_as_gradient_and_zero_at_equality():
    statistics = torch.tensor([3.0, 4.0, 1.0, 2.0, 2.0, 9.0], requires_grad=True)  # means of 2 + 1 channels, variances
    running, lengths = torch.tensor([0.0, 0.0, 1.0, 2.0, 14.0, 4.0]), torch.tensor([2, 1, 2, 1])
    loss = bn_loss(statistics, running, lengths)
    assert loss.item() == 5 + 0 + 12 + 5  # not squared, and not one norm over all layers
    (3 * loss).backward()
    torch.testing.assert_close(statistics.grad, 3 * torch.tensor([0.6, 0.8, 0.0, 0.0, -1.0, 1.0]))


def test_one_vector_holds_all_means_then_all_variances_in_fp32():
    means, variances = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [torch.tensor([4.0, 5.0]), torch.tensor([6.0])]
    found = concatenated([mean.bfloat16() for mean in means], [variance.bfloat16() for variance in variances])
    assert found.dtype == torch.float32 and found.tolist() == [1, 2, 3, 4, 5, 6]
