"""A batch of synthetic images on its way from a method to the student."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

TEACHER_LOGITS = "teacher_logits"  # a column (B, classes) that spares the targets a forward pass of the teacher
Column = tuple[tuple[int, ...], torch.dtype]  # what the pool keeps of an image: shape and type
Rows = dict[str, Tensor]  # of a batch that is not made yet: all that it is made of, by name


@dataclass(frozen=True)
class Batch:
    """Images, and named columns that the pool keeps beside them.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        columns: by name, a row an image: labels (B,), attacked twins (B, C, H, W), features (B, width), ...
    """

    images: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def rows(self) -> Rows:
        """The same as tensors by name."""
        return {"images": self.images} | self.columns

    @classmethod
    def of(cls, rows: Rows) -> "Batch":
        """What :attr:`rows` gave."""
        return cls(rows["images"], {name: values for name, values in rows.items() if name != "images"})
