"""Images in memory: which batches come, in which order."""

import pytest
import torch

from datafree.data.specs import TensorImages


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
