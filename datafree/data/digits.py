"""Two small data sets that need no download: UCI's handwritten digits, and pairs of them with 100 classes.

The 1,797 images of 8x8 pixels (0..16) are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak, 1998; CC BY 4.0), as scikit-learn's ``load_digits`` has them. A stratified fifth is held out, by its
``train_test_split(np.arange(1797), test_size=0.2, stratify=labels, random_state=0)``. digits.npz holds pixels, labels
and the indices of both parts, so that nobody waits for that library. Split, pairs and sizes were chosen by us.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .specs import TensorImages

FILE = Path(__file__).with_suffix(".npz")
PAIR_SEED = {True: 1, False: 2}  # train, test
PAIRS_PER_CLASS = {True: 100, False: 20}


def load_digits(data_root: Path, train: bool, download: bool) -> TensorImages:
    """Ten digits, uint8 (N, 3, 32, 32), grey in three equal channels; N = 1,437 for train and 360 for test.

    Nothing is read from ``data_root`` and nothing is downloaded: the images lie beside this file.
    """
    pixels, labels = split(train)
    return TensorImages(stretch(pixels, 32, 32).repeat(1, 3, 1, 1), labels)


def load_digits100(data_root: Path, train: bool, download: bool) -> TensorImages:
    """Two digits side by side, uint8 (N, 3, 32, 32), label 10 left + right; N = 10,000 for train and 2,000 for test.

    Every class is equally frequent, no pair of images comes twice, and both halves come from the split asked for: a
    digit that is held out is in no train pair. Each half is a digit stretched to 32 high by 16 wide.
    """
    pixels, labels = split(train)
    left, right = pair(labels.numpy(), PAIRS_PER_CLASS[train], PAIR_SEED[train])
    halves = stretch(pixels, 32, 16)
    images = torch.cat((halves[left], halves[right]), dim=3)  # two (N, 1, 32, 16) -> (N, 1, 32, 32)
    return TensorImages(images.repeat(1, 3, 1, 1), 10 * labels[left] + labels[right])


def split(train: bool) -> tuple[Tensor, Tensor]:
    """The source digits of one split: pixels in 0..16, float (N, 1, 8, 8), and int64 labels (N,)."""
    with np.load(FILE) as digits:
        chosen = digits["train" if train else "test"]
        pixels, labels = digits["pixels"][chosen], digits["labels"][chosen]
    return torch.from_numpy(pixels).float().unsqueeze(1), torch.from_numpy(labels).long()


def pair(labels: np.ndarray, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws the pairs: indices into ``labels`` of the left and of the right digit, two int64 (100 per_class,).

    For each of the 100 ordered pairs of digits, ``per_class`` different (left image, right image) pairs, uniformly; the
    order of the whole is then shuffled.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    drawn = []
    for left in members:
        for right in members:
            picks = generator.choice(len(left) * len(right), per_class, replace=False)
            drawn.append(np.stack((left[picks // len(right)], right[picks % len(right)])))
    pairs = generator.permutation(np.concatenate(drawn, axis=1), axis=1)
    return torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1])


def stretch(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bilinear up-sampling of float (N, 1, 8, 8) in 0..16 to uint8 (N, 1, height, width) in 0..255.

    The same on every platform: with a factor of 2 or 4 all weights are multiples of 1/8, so float32 rounds nothing
    before the last step.
    """
    enlarged = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return (enlarged * 255 / 16).round().to(torch.uint8)
