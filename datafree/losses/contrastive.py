"""Images told apart from each other by their features (CMI, Fang et al. 2021). Pure functions, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(anchors: Tensor, others: Tensor, tau: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of each image, in nats: unit vectors (N, width) twice -> (N,).

        l_i = -log( exp(a_i . o_i / tau) / sum_j exp(a_i . o_j / tau) )

    Args:
        anchors: of one view of each image.
        others: of another view, in the same order; no gradient flows into them.
        tau: temperature; lower makes the nearest of the others count for more.
    """
    similarity = anchors.float() @ others.detach().float().T / tau
    return F.cross_entropy(similarity, torch.arange(len(anchors), device=anchors.device), reduction="none")


def contrastive_loss(anchors: Tensor, others: Tensor, tau: float, batch: int) -> Tensor:
    """L_cr = mean of l_i over the batch + mean of l_i over the memory (none yet: 0): (N, width) twice -> scalar.

    Two means, for in a mean over all N the ``batch`` first ones, which alone have a gradient to the images, would count
    for less the larger the memory is.
    """
    losses = info_nce(anchors, others, tau)
    now, before = losses[:batch].mean(), losses[batch:]
    return now + before.mean() if len(before) else now
