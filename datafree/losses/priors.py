"""What images look like whoever looks at them, and what attention layers say of them. Pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

BINS, NARROWEST = 64, 0.02  # of the density of cosine similarities in [-1, 1]; chosen by us


def total_variation(x: Tensor) -> Tensor:
    """How much neighbouring pixels differ (Rudin, Osher and Fatemi 1992, anisotropic).

    L_tv = mean |x[i+1, j] - x[i, j]| + mean |x[i, j+1] - x[i, j]|

    Args:
        x: pixels (B, C, H, W) in [0, 1]; a side of one pixel has no neighbours and adds nothing.
    """
    differences = [x.diff(dim=dim).abs() for dim in (2, 3) if x.shape[dim] > 1]
    return sum((each.mean() for each in differences), start=x.new_zeros(()))


def image_norm(x: Tensor) -> Tensor:
    """L_l2 = mean x^2 of normalised images (B, C, H, W): keeps them near what the data are like on average."""
    return x.square().mean()


def patch_similarity(tokens: Tensor) -> Tensor:
    """Cosine similarity of every two tokens of an image: (B, N, width) -> (B, N, N) in [-1, 1]."""
    tokens = F.normalize(tokens.float(), dim=2, eps=1e-6)
    return tokens @ tokens.transpose(1, 2)


def similarity_entropy(similarity: Tensor) -> Tensor:
    """Differential entropy of the similarities in each image, in nats: (B, N, N) -> (B,) (PSAQ-ViT, Li et al. 2022).

    H = -integral f log f,   f the Gaussian kernel density of the N^2 similarities

    The bandwidth is Scott's, sigma * n^(-1/5), without a gradient and at least NARROWEST. The density is taken at BINS
    points: each similarity is shared between its two nearest, and the kernel runs over the points.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        values = similarity.float().flatten(1).clamp(-1, 1)  # (B, n)
        step = 2 / (BINS - 1)
        place = (values + 1) / step
        below = place.detach().floor().clamp(max=BINS - 2)
        share = place - below
        counts = values.new_zeros(len(values), BINS).scatter_add(1, below.long(), 1 - share)
        counts = counts.scatter_add(1, below.long() + 1, share)
        width = (values.detach().std(1) * values.shape[1] ** -0.2).clamp_min(NARROWEST)
        points = torch.linspace(-1, 1, BINS, device=values.device)
        kernel = torch.exp(-0.5 * ((points[:, None] - points) / width[:, None, None]).square())  # (B, BINS, BINS)
        density = torch.bmm(kernel, counts.unsqueeze(2)).squeeze(2)
        density = density / (density.sum(1, keepdim=True) * step)
        return -(density * density.clamp_min(1e-12).log()).sum(1) * step


def patch_diversity_loss(similarities: list[Tensor]) -> Tensor:
    """L_patch = -mean over layers and images of the entropy of their similarities: low where patches differ.

    PSAQ-ViT adds the layers up; the mean makes the weight the same whatever the depth.
    """
    return -torch.stack([similarity_entropy(each).mean() for each in similarities]).mean()
