"""Whether two networks have the same weights, as a line of text that can be kept."""

import hashlib

import torch
from torch import Tensor, nn


def checksum(network: nn.Module) -> str:
    """SHA-256, in hex, of the names, types, shapes and bytes of a state dict, and of a Classifier's input format.

    Of tensors alone, and without ``num_batches_tracked``, which some files lack and nothing in eval mode reads.
    """
    digest = hashlib.sha256(repr(getattr(network, "input_format", "")).encode())
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
