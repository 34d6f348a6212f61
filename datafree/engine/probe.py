"""One look before the first epoch: what cannot work is said while nothing is written yet."""

import copy

import torch
from torch import nn

from ..errors import UserError, is_out_of_memory
from .device import Compute


def check_answers(network: nn.Module, what: str, img_size: int, compute: Compute, train_batch: int = 0) -> None:
    """Has a network answer a little noise; draws no random numbers of the run and leaves the network as it is.

    Args:
        network: takes images (B, 3, H, W) in [0, 1].
        what: what it is to the user, for messages ("teacher runs/a.pth").
        img_size: H = W in pixels.
        compute: device and precision.
        train_batch: images a step where the network will be trained; 0 asks it in the mode that it is in.

    Raises:
        UserError: if it cannot take images of that size, or answers with NaN or infinity.
    """
    noise = torch.rand(2, 3, img_size, img_size, generator=torch.Generator().manual_seed(0)).to(compute.device)
    if train_batch:
        network, noise = copy.deepcopy(network).train(), noise[:train_batch]
    devices = [compute.device] if compute.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), compute.autocast():
            finite = network(noise).isfinite().all().item()
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{what} cannot take batches of {len(noise)} images of {img_size}x{img_size} pixels: {error}",
            "choose larger images or batches, or another model",
        ) from None
    if not finite:
        raise UserError(
            f"{what} answers noise with NaN or infinite numbers", "train or copy it anew, or try --precision fp32"
        )
