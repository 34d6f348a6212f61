"""A generator of images of given labels whose randomness is a layer (NAYER, Tran et al., CVPR 2024).

    x = g(W_b e~_y + c_b),    e~ = BatchNorm of the labels' embeddings over the batch

A label's embedding e_y is constant. Samples go through in blocks, each with a noisy layer (W_b, c_b) of its own: drawn
as W ~ N(0, 1) and c = 0, trained from there on. A block holds each label once, so that no two samples begin alike.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.specs import Size
from ..errors import UserError
from ..files import kind_of
from ..weights.reading import read
from .generator import ImageGenerator

NPY = b"\x93NUMPY"  # how a file of numpy.save begins


class LabelGenerator(nn.Module):
    """G: labels (B,) -> images (B, channels, H, W) in [0, 1], float32; B is ``batch``.

    Args:
        embeddings: (C, d), a row a class.
        batch: B.
        width: of the noisy layers' output, which is what the generative network g takes.
        ngf, img_size, channels: of g.
    """

    def __init__(self, embeddings: Tensor, batch: int, width: int, ngf: int, img_size: int | Size, channels: int):
        super().__init__()
        classes, d = embeddings.shape
        self.block = min(classes, batch)
        self.register_buffer("embeddings", embeddings)
        self.norm = nn.BatchNorm1d(d)
        self.noisy_weight = nn.Parameter(torch.zeros(-(-batch // self.block), d, width))  # (blocks, d, width)
        self.noisy_bias = nn.Parameter(torch.zeros(len(self.noisy_weight), 1, width))
        self.images = ImageGenerator(width, ngf, img_size, channels)

    @property
    def noisy(self) -> list[nn.Parameter]:
        """Weights of the noisy layers, which are of one batch alone."""
        return [self.noisy_weight, self.noisy_bias]

    @torch.no_grad()
    def draw_noise(self, rng: torch.Generator) -> None:
        """New noisy layers."""
        self.noisy_weight.normal_(generator=rng)
        self.noisy_bias.zero_()

    def forward(self, y: Tensor) -> Tensor:
        e = self.norm(self.embeddings[y])  # (B,) -> (B, d)
        short = len(self.noisy_weight) * self.block - len(e)
        e = F.pad(e, (0, 0, 0, short)).view(len(self.noisy_weight), self.block, -1)  # -> (blocks, block, d)
        noise = torch.baddbmm(self.noisy_bias, e, self.noisy_weight)  # -> (blocks, block, width)
        return self.images(noise.flatten(0, 1)[: len(y)])  # -> (B, channels, H, W)


def load_embeddings(path: Path, num_classes: int) -> Tensor:
    """Label embeddings (C, d) in fp32, of numpy.save or any file of one tensor, read as data.

    Raises:
        UserError: where the file cannot be read, or is not a table of finite numbers with a row a class.
    """
    what, remedy = f"label embeddings {path}", "save one array (classes, d) with numpy.save or torch.save"
    kind_of(path, "label embeddings")
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(NPY)) == NPY
        table = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32)) if is_npy else None
    except IsADirectoryError:
        table = None  # of a kind that has folders
    except (OSError, ValueError, EOFError, TypeError):
        raise UserError(f"{what} cannot be read, or is not of numbers alone", remedy) from None
    if table is None:
        table = read(path, "label embeddings").value
        if isinstance(table, dict) and len(table) == 1:
            (table,) = table.values()
    if not isinstance(table, Tensor) or table.ndim != 2 or table.is_complex():
        shape = f" but of shape {tuple(table.shape)}" if isinstance(table, Tensor) else ""
        raise UserError(f"{what} is no table of numbers{shape}", remedy)
    if len(table) != num_classes:
        raise UserError(f"{what} has {len(table)} rows for {num_classes} classes", "give a row a class, in their order")
    if not table.shape[1] or not table.isfinite().all():
        raise UserError(f"{what} holds no numbers, or NaN", remedy)
    return table.float()
