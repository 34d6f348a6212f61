"""Networks that several processes train together: BatchNorm by the whole batch, and the mean of all gradients."""

import warnings
from functools import cache

import torch
from torch import Tensor, nn

from .. import processes


class _WholeBatchNorm(torch.autograd.Function):
    """x (B, C, ...) normalised by the moments of all shares -> like x, and the moments (2C,)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        unused = torch.zeros_like(weight)  # fp32, which keeps the sums of a 16-bit input in fp32: see losses.batchnorm
        of_share = torch.cat(torch.ops.aten.batch_norm_update_stats(x, unused, unused, 0.0))
        moments = processes.merged(processes.gather(of_share))
        ctx.save_for_backward(x, weight, moments)
        ctx.eps = eps
        ctx.mark_non_differentiable(moments)
        return torch.native_batch_norm(x, weight, bias, *moments.chunk(2), False, 0.0, eps)[0], moments

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # dL/dx = w/s * (g - mean(g) - x^ * mean(g x^)), x^ = (x - mu)/s: what frozen statistics give, and an affine map
        x, weight, moments = ctx.saved_tensors
        mean, variance = moments.chunk(2)
        frozen = (weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(grad, x, *frozen)
        scale = -weight * (variance + ctx.eps).rsqrt() / (processes.size() * x.numel() / x.shape[1])
        of_x, of_1 = processes.total(torch.cat([dw, db])).chunk(2)
        dx = dx + torch.native_batch_norm(x, scale * of_x, scale * of_1, mean, variance, False, 0.0, ctx.eps)[0]
        return dx, dw, db, None


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """In train mode by the statistics of the whole batch, not of this process's share; for CPU and GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes.size() == 1:
            return super().forward(x)
        return self._of_whole_batch(x)

    def _of_whole_batch(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        ones = torch.ones(x.shape[1], dtype=dtype, device=x.device)
        weight, bias = (ones, 0 * ones) if self.weight is None else (self.weight, self.bias)
        out, moments = _WholeBatchNorm.apply(x, weight, bias, self.eps)
        if self.running_mean is not None and self.track_running_stats:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            n = processes.size() * x.numel() / x.shape[1]
            mean, variance = moments.chunk(2)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (n / (n - 1)), share)
        return out


@cache
def _kinds() -> dict[type[nn.Module], type[WholeBatchNorm]]:
    """Their classes by PyTorch's own, made when needed: what keeps them out of compiled code is slow to import."""
    apart = {"_of_whole_batch": torch.compiler.disable(WholeBatchNorm._of_whole_batch)}
    own = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {kind: type(f"Whole{kind.__name__}", (WholeBatchNorm, kind), apart) for kind in own}


def see_whole_batch(network: nn.Module) -> None:
    """Lets its BatchNorm layers, those of PyTorch's own classes, work on the batch of all processes from now on."""
    for module in network.modules() if processes.size() > 1 else ():
        module.__class__ = _kinds().get(type(module), type(module))


def shares_gradients(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> nn.Module:
    """The network, called through which its gradients are the mean over processes.

    Args:
        network: on its device. Changed in nothing.
        shape, device: of an image that it takes, to find out whether all of its weights get a gradient.
    """
    if processes.size() == 1:
        return network
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    training = network.training
    found = torch.autograd.grad(network.eval()(x).sum(), weights, allow_unused=True)
    unused = any(gradient is None for gradient in found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a later name of broadcast_buffers
        learning = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=unused)
    if not unused:  # after a first pass it sums gradients in another order: have that behind us, as a resumed run will
        learning(x).sum().backward()
        network.zero_grad()
    return learning.train(training)


@torch.no_grad()
def agree_on_buffers(network: nn.Module) -> None:
    """The mean over processes of what layers remember that see their process's share alone.

    Those are BatchNorm layers of a class of somebody else's.
    """
    for module in network.modules() if processes.size() > 1 else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, WholeBatchNorm):
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffer.copy_(processes.mean(buffer))
