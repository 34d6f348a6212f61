"""What a batch looks like to BatchNorm layers, and how far that is from what they remember of real data; in fp32.

    mu_l, var_l = mean and biased variance of layer l's input over batch and positions
    L_bn        = sum_l ||mu_l - mu^_l||_2 + ||var_l - var^_l||_2          (DeepInversion, Yin et al. 2020)
    or          sum_l sum_c KL(N(mu_lc, var_lc) || N(mu^_lc, var^_lc))     (Choi et al. 2020)

All layers' statistics lie in one vector, a segment a norm: [mu_1, ..., mu_L, var_1, ..., var_L].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-5  # of nn.BatchNorm2d
KERNELS = ("cpu", "cuda")  # devices with the kernels that are asked for by name; elsewhere common operations do


class _ChannelMoments(torch.autograd.Function):
    """(B, C, ...) in any precision -> mean (C,), biased variance (C,) in fp32, without an fp32 copy of the input."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        # The kernel behind training-mode batch norm. The fp32 running statistics, which momentum 0 leaves as they are,
        # make it return fp32 for an input of 16 bits; without them it would round its fp32 sums to these.
        dtype = torch.promote_types(x.dtype, torch.float32)
        unused = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, unused, unused, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        # dL/dx = grad_mean/n + (x - mean) * 2*grad_variance/n: an affine map a channel, which is what batch_norm is.
        x, mean = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        scale, shift = grad_variance * (2 / n), grad_mean / n
        return torch.native_batch_norm(x, scale, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all dimensions but the second: (B, C, ...) -> (C,), (C,). Differentiable."""
    if x.device.type in KERNELS:
        return _ChannelMoments.apply(x)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
    return mean, variance


class _SumOfNorms(torch.autograd.Function):
    """Vector (N,) in segments -> sum of the segments' Euclidean norms; the gradient at a zero segment is 0."""

    @staticmethod
    def forward(ctx, difference: Tensor, lengths: Tensor) -> Tensor:
        if difference.device.type in KERNELS:
            norms = torch.segment_reduce(difference.square(), "sum", lengths=lengths, unsafe=True).sqrt()
        else:
            segment = torch.arange(len(lengths), device=lengths.device)
            segment = segment.repeat_interleave(lengths, output_size=len(difference))
            norms = difference.new_zeros(len(lengths)).index_add(0, segment, difference.square()).sqrt()
        ctx.save_for_backward(difference, norms, lengths)
        return norms.sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        difference, norms, lengths = ctx.saved_tensors
        inverse = torch.where(norms > 0, grad / norms, 0)
        return difference * inverse.repeat_interleave(lengths, output_size=len(difference)), None


def bn_loss(statistics: Tensor, running: Tensor, lengths: Tensor) -> Tensor:
    """L_bn: (N,), (N,), (2L,) -> scalar. Gradient flows into the first.

    Args:
        statistics: means, then variances, of the synthetic batch, all layers in one vector.
        running: what the teacher's layers remember of real data, likewise.
        lengths: channels of each segment, int64, summing to N.
    """
    return _SumOfNorms.apply(statistics - running, lengths)


def gaussian_bn_loss(statistics: Tensor, running: Tensor, lengths: Tensor) -> Tensor:
    """L_bn as the KL divergence of normal distributions, a channel each, in nats: arguments as of ``bn_loss``.

        log(s^ / s) + (s^2 + (mu - mu^)^2) / (2 s^^2) - 1/2,    s^2 = var + EPSILON, s^^2 = var^ + EPSILON

    EPSILON, as in the layers themselves, keeps channels that are always zero finite; the paper has none.
    """
    (mean, variance), (remembered_mean, remembered_variance) = statistics.chunk(2), running.chunk(2)
    ratio = (variance + EPSILON) / (remembered_variance + EPSILON)
    squared = (mean - remembered_mean).square() / (remembered_variance + EPSILON)
    return 0.5 * (ratio + squared - ratio.log() - 1).sum()


def concatenated(means: Sequence[Tensor], variances: Sequence[Tensor]) -> Tensor:
    """L vectors (C_l,) twice -> one fp32 vector (2 * sum of C_l,)."""
    return torch.cat([*means, *variances]).float()
