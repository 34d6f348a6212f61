"""Published folders of image files: Tiny-ImageNet in both layouts, ImageNet."""

import numpy as np
import pytest
import torch
from conftest import user_error
from PIL import Image

from datafree.data.folders import load_imagenet, load_tiny_imagenet
from datafree.data.specs import DamagedData, MissingData
from datafree.data.torchvision_sets import load_cifar10

WNIDS = [f"n{i:08d}" for i in np.random.default_rng(0).permutation(200)]  # not in sorted order


def write_image(path, colour, size=(64, 64), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)


def write_tiny_train(root, below="images"):
    """One flat image a class whose grey is the rank of the class's sorted name."""
    for wnid in WNIDS:
        grey = sorted(WNIDS).index(wnid)
        write_image(root / "train" / wnid / below / f"{wnid}_0.JPEG", (grey,) * 3, quality=95)


def write_tiny_val(root, original: bool):
    lines = []
    for i, wnid in enumerate(WNIDS):
        folder = root / "val" / "images" if original else root / "val" / wnid
        write_image(folder / f"val_{i}.JPEG", (sorted(WNIDS).index(wnid),) * 3, quality=95)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    if original:
        (root / "val" / "val_annotations.txt").write_text("".join(lines))


def greys_tell_the_class(images):
    return (images.images[:, 0, 0, 0].long() - images.labels).abs().max() <= 1


@pytest.mark.parametrize(
    ("folder", "original", "below"), [("tiny-imagenet-200", True, "images"), ("tiny_imagenet", False, ".")]
)
def test_tiny_imagenet_train_and_val_number_the_classes_alike_in_both_layouts(tmp_path, folder, original, below):
    write_tiny_train(tmp_path / folder, below)
    write_tiny_val(tmp_path / folder, original)
    for train in (True, False):
        images = load_tiny_imagenet(tmp_path, train, False)
        assert images.images.shape == (200, 3, 64, 64) and sorted(images.labels.tolist()) == list(range(200))
        assert greys_tell_the_class(images)


def test_tiny_imagenet_val_in_the_original_layout_needs_no_train_and_may_hold_grey_images(tmp_path):
    write_tiny_val(tmp_path / "tiny_imagenet", original=True)
    assert greys_tell_the_class(load_tiny_imagenet(tmp_path, False, False))
    Image.new("L", (64, 64), 77).save(tmp_path / "tiny_imagenet/val/images/val_0.JPEG")
    assert load_tiny_imagenet(tmp_path, False, False).images[0].unique().tolist() == [77]


def test_a_harmed_tiny_imagenet_is_named_in_one_line(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_train(root)
    write_tiny_val(root, original=True)
    image, listing = root / "val/images/val_3.JPEG", root / "val/val_annotations.txt"
    whole, text = image.read_bytes(), listing.read_text()

    def refused(word):
        with user_error(word, kind=DamagedData):
            load_tiny_imagenet(tmp_path, False, False)

    image.write_bytes(whole[:300])
    refused("val_3.JPEG")
    image.unlink()
    refused("val_3.JPEG")
    write_image(image, (0, 0, 0), (65, 64))
    refused("64x64")
    listing.write_text(text.replace(WNIDS[7], "n99999999"))
    refused("only one of")
    listing.unlink()
    refused("val_annotations.txt")


@pytest.mark.parametrize("load", [load_tiny_imagenet, load_imagenet])
def test_absent_folders_are_missing_and_half_a_folder_is_damaged(tmp_path, no_network, load):
    with user_error("--data_root", kind=MissingData):
        load(tmp_path, False, True)
    for name in ("tiny-imagenet-200", "imagenet"):
        (tmp_path / name / "train").mkdir(parents=True)
    with user_error("val", kind=DamagedData):
        load(tmp_path, False, True)
    assert not no_network


def write_classes(root, classes, parts=("train", "val"), size=(20, 16)):
    for part in parts:
        for i, name in enumerate(classes):
            write_image(root / part / name / "a.png", (i % 256, i // 256, 0), size)


@pytest.mark.slow
def test_imagenet_reads_a_thousand_classes_in_the_order_of_their_names(tmp_path):
    write_classes(tmp_path / "imagenet", [f"n{i:08d}" for i in range(1000)], ("val",), size=(2, 2))
    images = load_imagenet(tmp_path, False, False)
    assert len(images) == 1000 and images.labels.tolist() == list(range(1000))
    pixels, labels = next(images.batches(8, "cpu"))
    assert pixels.shape == (8, 3, 224, 224) and torch.equal(pixels[:, 0, 0, 0].long(), labels)


@pytest.mark.parametrize("load", [load_imagenet, load_tiny_imagenet, load_cifar10])
def test_a_folder_that_may_not_be_looked_into_is_named_in_one_line(tmp_path, monkeypatch, load):
    for name in ("imagenet/val", "tiny_imagenet/val", "cifar-10-batches-py"):
        (tmp_path / name).mkdir(parents=True)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with user_error(str(tmp_path), kind=DamagedData):
        load(tmp_path, False, False)
