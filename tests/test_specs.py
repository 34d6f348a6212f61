"""Images in memory and in folders: which batches come, in which order, cropped how."""

import numpy as np
import pytest
import torch
from conftest import user_error
from PIL import Image

from datafree.data.specs import DamagedData, FolderImages, TensorImages


def counted_images(n: int = 10, size: int = 4) -> TensorImages:
    """Image i is filled with i and has label i."""
    numbers = torch.arange(n)
    return TensorImages(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous(), numbers)


def test_batches_come_in_order_and_hold_every_image():
    pieces = list(counted_images().batches(4, "cpu"))
    assert [len(labels) for _, labels in pieces] == [4, 4, 2]
    assert torch.cat([labels for _, labels in pieces]).tolist() == list(range(10))
    assert torch.cat([images for images, _ in pieces])[:, 0, 0, 0].tolist() == list(range(10))


def test_shuffled_covers_every_image_once_with_its_own_label_in_an_order_that_its_generator_alone_decides():
    orders = []
    for seed, noise in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(noise)
        pieces = list(counted_images().shuffled(4, torch.Generator().manual_seed(seed), "cpu"))
        labels = torch.cat([labels for _, labels in pieces])
        assert torch.equal(torch.cat([images for images, _ in pieces])[:, 0, 0, 0].long(), labels)
        orders.append(labels.tolist())
        assert sorted(orders[-1]) == list(range(10)) != orders[-1]
    assert orders[0] == orders[1] != orders[2]


def test_drop_last_drops_a_short_batch_unless_it_is_the_only_one():
    def sizes(batch_size):
        generator = torch.Generator().manual_seed(0)
        return [len(y) for _, y in counted_images().shuffled(batch_size, generator, "cpu", drop_last=True)]

    assert sizes(4) == [4, 4] and sizes(5) == [5, 5] and sizes(64) == [10]


def test_tensor_images_refuse_floats_and_unequal_lengths():
    with pytest.raises(ValueError, match="uint8"):
        TensorImages(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels"):
        TensorImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


@pytest.fixture
def gradients(tmp_path):
    """Six images of 60x40 whose red channel runs from left to right and whose blue channel is the label times 100."""
    samples = []
    for i in range(6):
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 2] = np.arange(60) * 4, 100 * (i // 3)
        samples.append((str(tmp_path / f"{i}.png"), i // 3))
        Image.fromarray(pixels).save(samples[-1][0])
    return samples


def test_folder_batches_resize_the_shorter_side_and_crop_the_centre(gradients):
    (images, labels), (rest, _) = FolderImages(gradients, 28, workers=0).batches(4, "cpu")
    assert images.shape == (4, 3, 28, 28) and rest.shape == (2, 3, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 0, 1] and images[3, 2].unique().tolist() == [100]
    # 60x40 -> 48x32 with 4 steps of grey every 0.8 pixels; the crop starts 10 pixels in
    assert abs(images[0, 0, 14, 0].item() - 10 / 0.8 * 4) <= 4 and abs(images[0, 0, 14, 27].item() - 37 / 0.8 * 4) <= 4


def test_folder_crops_are_random_yet_decided_by_the_generator_whatever_the_number_of_workers(gradients):
    def epoch(seed, workers):
        generator = torch.Generator().manual_seed(seed)
        pieces = list(FolderImages(gradients, 16, workers).shuffled(4, generator, "cpu"))
        return torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])

    state = torch.manual_seed(1).get_state()
    images, labels = epoch(0, workers=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, labels_again = epoch(0, workers=2)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1] and torch.equal(images[:, 2, 0, 0].long(), 100 * labels)
    assert len({x[0].numpy().tobytes() for x in images}) == 6
    assert not torch.equal(epoch(1, workers=0)[0], images)
    assert FolderImages(gradients, 16).crops and not counted_images().crops


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_in_a_folder_is_named_in_one_line(gradients, workers):
    with open(gradients[4][0], "wb") as file:
        file.write(b"no image")
    with user_error("4.png", kind=DamagedData):
        list(FolderImages(gradients, 16, workers).batches(4, "cpu"))
