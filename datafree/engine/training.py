"""Training on real data: cross-entropy, SGD with Nesterov momentum or AdamW, one augmentation call a batch."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from .. import processes
from ..configuration import knob
from ..data.augmentation import Augmentation, to_pixels
from ..data.specs import Images
from ..errors import UserError, check_finite
from ..models.classifier import Classifier
from .device import Compute
from .randomness import Streams
from .scaling import Scaler
from .student import OptimiserConfig, optimiser
from .whole_batch import agree_on_buffers, shares_gradients


class Training:
    """Trains a classifier in place, an epoch at a time. Draws from the stream "training" alone.

    Args:
        classifier: on the device.
        images: the training set; a small one lies on the device as one tensor.
        config: the knobs; its batch size is this process's share.
        augmentation: random crop and flip.
        compute: device and precision.
        streams: random streams.
    """

    @dataclass(frozen=True)
    class Config(OptimiserConfig):
        epochs: int = knob(200, "length of the run", low=1, unit="N", names=("epoch",))
        lr: float = knob(0.1, "learning rate at the start", above=0)
        weight_decay: float = knob(5e-4, "raise it against overfitting", low=0)
        lr_decay_milestones: tuple[int, ...] | None = knob(
            None, "divide the learning rate by 10 after these epochs (default: a cosine to 0)", low=1, unit="EPOCH"
        )
        eval_every: int = knob(1, "how often the model is evaluated; the last epoch always is", low=1, unit="EPOCHS")

        def check(self) -> None:
            ends = self.lr_decay_milestones or ()
            if any(later <= earlier for earlier, later in pairwise(ends)):
                raise UserError(f"--lr_decay_milestones {ends} do not increase", "name each epoch once, in order")
            if ends and ends[-1] >= self.epochs:
                what = f"--lr_decay_milestones: none of {self.epochs} epochs is after {ends[-1]}"
                raise UserError(what, "leave it out or raise --epochs")

    def __init__(
        self,
        classifier: Classifier,
        images: Images,
        config: "Training.Config",
        augmentation: Augmentation,
        compute: Compute,
        streams: Streams,
    ):
        self.classifier, self.images, self.config = classifier, images, config
        self.augmentation, self.compute, self.streams = augmentation, compute, streams
        self.learning = shares_gradients(classifier, (classifier.channels, *classifier.img_size), compute.device)
        self.scaler = Scaler(compute)
        self.optimizer = optimiser(classifier.parameters(), config, nesterov=True, compute=compute)
        if config.lr_decay_milestones:
            self.scheduler = MultiStepLR(self.optimizer, config.lr_decay_milestones, gamma=0.1)
        else:
            self.scheduler = CosineAnnealingLR(self.optimizer, config.epochs)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, the random streams apart."""
        return {
            "model": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # which earlier versions lack

    def epoch(self) -> dict[str, float]:
        """One pass over the images; returns mean loss and accuracy (%) on the augmented batches, and the rate.

        Raises:
            NotFiniteError: if the loss became NaN or infinite.
        """
        self.classifier.train()
        rng, device = self.streams["training"], self.compute.device
        part, order = (processes.rank(), processes.size()), self.streams.common("training")
        whole = self.config.batch_size * processes.size()
        history, seen, lr = [], 0, self.scheduler.get_last_lr()[0]
        for levels, labels in self.images.shuffled(whole, order, device, drop_last=True, part=part):
            x = to_pixels(self.augmentation(levels, rng))
            with self.compute.autocast():
                logits = self.learning(x)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            history.append(torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()]))
            seen += len(labels)
        self.scheduler.step()
        agree_on_buffers(self.classifier)
        sums = processes.total(torch.stack(history))  # (steps, 2): loss and hits
        sums = sums.cpu()  # the epoch's one transfer from the device
        check_finite(sums[:, :1], ["loss"])
        loss, hits = (sums.sum(0) / (seen * processes.size())).tolist()
        return {"loss": loss, "accuracy_train": 100 * hits, "lr": lr}
