"""Adversarial examples of Carlini and Wagner (2017), L2, with the adversarial-robustness-toolbox.

They are the yardstick for what P does in one pass: for each image, the smallest change found to change its class.
"""

import torch
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..data.augment import Augmentation

LEARNING_RATE, FIRST_CONSTANT = 0.1, 1.0  # chosen by us: with the library's 0.01 for both, black pixels hardly move


class OnPixels(nn.Module):
    """A classifier that takes pixels in [0, 1] rather than normalised images, (B, 3, H, W) -> (B, C)."""

    def __init__(self, model: nn.Module, augmentation: Augmentation):
        super().__init__()
        self.model, self.augmentation = model, augmentation

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.augmentation.normalise(x))


def carlini_wagner(
    model: nn.Module,
    augmentation: Augmentation,
    x: Tensor,
    num_classes: int,
    steps: int = 10,
    searches: int = 3,
    batch_size: int = 64,
) -> Tensor:
    """Images of another predicted class, near in L2: pixels (B, 3, H, W) in [0, 1] to such pixels.

    An image for which none is found comes back as it was. The model is attacked in fp32.

    Args:
        model: in eval mode.
        augmentation: for the normalisation that the model wants.
        x: the images.
        num_classes: C.
        steps: of descent for each constant; more find more, and nearer ones.
        searches: constants tried for each image, between nearness and class.
        batch_size: images at a time.
    """
    on_gpu = x.device.type == "cuda"
    classifier = PyTorchClassifier(
        OnPixels(model, augmentation).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if on_gpu else "cpu",
    )
    attack = CarliniL2Method(
        classifier,
        max_iter=steps,
        binary_search_steps=searches,
        learning_rate=LEARNING_RATE,
        initial_const=FIRST_CONSTANT,
        batch_size=batch_size,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x.cpu().numpy())).to(x)
