"""The digits that come with the code, alone and in pairs: the same on every machine, test apart from train."""

import hashlib

import numpy as np
import pytest

from datafree.data.digits import load_digits, load_digits100, split, stretch


def test_digit_images_are_the_bilinear_upsampling_of_the_source():
    pixels, _ = split(True)
    image = stretch(pixels[:1], 32, 32)[0, 0]
    source = pixels[0, 0].double().numpy()
    at = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)  # pixel centres
    columns = np.stack([np.interp(at, np.arange(8), row) for row in source])
    expected = np.stack([np.interp(at, np.arange(8), column) for column in columns.T], axis=1) * 255 / 16
    assert np.abs(image.numpy() - expected).max() <= 0.5


def halves_by_bytes(train: bool) -> dict[bytes, int]:
    """Source digits of a split, stretched to half an image, with their labels."""
    pixels, labels = split(train)
    return {half.numpy().tobytes(): int(y) for half, y in zip(stretch(pixels, 32, 16), labels, strict=True)}


@pytest.mark.parametrize("train", [True, False])
def test_digits100_halves_are_digits_of_the_own_split_and_make_the_label(tmp_path, train):
    own, other = halves_by_bytes(train), halves_by_bytes(not train)
    assert not own.keys() & other.keys()
    pairs = load_digits100(tmp_path, train, False)
    for image, label in zip(pairs.images, pairs.labels.tolist(), strict=True):
        left, right = (half.contiguous().numpy().tobytes() for half in image[0].split(16, dim=1))
        assert label == 10 * own[left] + own[right]


@pytest.mark.parametrize(
    ("load", "train", "checksum"),
    [
        (load_digits, True, "e9adda3ee496a28d"),
        (load_digits, False, "3647b38292c335ff"),
        (load_digits100, True, "c2398c6984572dbb"),
        (load_digits100, False, "753b2c3bb1bd039f"),
    ],
)
def test_digits_are_the_same_on_every_machine(tmp_path, load, train, checksum):
    """The committed teachers were trained on exactly these bytes."""
    images = load(tmp_path, train, False)
    held = images.images.numpy().tobytes() + images.labels.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(held).hexdigest()[:16] == checksum
