"""Training on real data: cross-entropy, SGD with Nesterov momentum, one augmentation call a batch."""

from argparse import Namespace
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from .data.augment import Augmentation, to_pixels
from .data.datasets import Images
from .device import Compute
from .errors import check_finite
from .randomness import Streams


@dataclass(frozen=True)
class TrainingSettings:
    """The knobs, named as on the command line."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    lr_decay_milestones: list[int] | None

    @classmethod
    def of(cls, args: Namespace) -> "TrainingSettings":
        """From the command line's values of the same names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


class Training:
    """Trains a classifier in place, an epoch at a time. Draws from the stream "training" alone.

    Args:
        model: on the device.
        images: the training set; a small one lies on the device as one tensor.
        settings: the knobs.
        augmentation: pixels to classifier input.
        compute: device and precision.
        streams: random streams.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        settings: TrainingSettings,
        augmentation: Augmentation,
        compute: Compute,
        streams: Streams,
    ):
        self.model, self.images, self.settings = model, images, settings
        self.augmentation, self.compute, self.streams = augmentation, compute, streams
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
            fused=True,
        )
        if settings.lr_decay_milestones:
            self.scheduler = MultiStepLR(self.optimizer, settings.lr_decay_milestones, gamma=0.1)
        else:
            self.scheduler = CosineAnnealingLR(self.optimizer, settings.epochs)

    def state_dict(self) -> dict:
        """All that the next epoch depends on, the random streams apart."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def epoch(self) -> dict[str, float]:
        """One pass over the images; returns mean loss and accuracy (%) on the augmented batches, and the rate.

        Raises:
            NotFiniteError: if the loss became NaN or infinite.
        """
        self.model.train()
        rng, device = self.streams["training"], self.compute.device
        history, seen, lr = [], 0, self.scheduler.get_last_lr()[0]
        for levels, labels in self.images.shuffled(self.settings.batch_size, rng, device, drop_last=True):
            with self.compute.autocast():
                logits = self.model(self.augmentation(to_pixels(levels), rng))
            loss = F.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            history.append(torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()]))
            seen += len(labels)
        self.scheduler.step()
        sums = torch.stack(history).cpu()  # (steps, 2): loss and hits; the epoch's one transfer from the device
        check_finite(sums[:, :1], ["loss"])
        loss, hits = (sums.sum(0) / seen).tolist()
        return {"loss": loss, "accuracy_train": 100 * hits, "lr": lr}
