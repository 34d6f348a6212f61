"""The pool of synthetic images with named columns: what goes in, what is drawn, in which order, how it is augmented."""

import pytest
import torch
from conftest import CPU

from datafree.data.augmentation import Augmentation, to_levels, to_pixels
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, bytes_per_image, image_column

COLUMNS = {
    "images": image_column((3, 4, 4)),
    "twins": image_column((3, 4, 4)),
    "labels": ((), torch.int64),
    "features": ((5,), torch.half),
}
PLAIN = Augmentation(padding=0)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pool(capacity, columns=("images",), augmentation=PLAIN, placement=None, rng=None):
    rng = rng or stream()
    kept = {name: COLUMNS[name] for name in columns}
    return ImagePool(capacity, kept, placement or Placement(CPU), augmentation, rng, rng)


def numbered(first, count):
    """Image i is filled with level i."""
    return Batch((torch.arange(first, first + count).float() / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4))


def numbers(batch):
    return (batch.images[:, 0, 0, 0] * 255).round().long()


def whole_batch(count):
    """With all columns."""
    rest = {"twins": torch.rand(count, 3, 4, 4), "labels": torch.arange(count), "features": torch.rand(count, 5)}
    return Batch(torch.rand(count, 3, 4, 4), rest)


def test_a_row_takes_what_its_columns_take_and_comes_back_as_the_nearest_levels_in_the_order_it_came():
    pool, batches = make_pool(5, COLUMNS), [whole_batch(2), whole_batch(3)]
    for batch in batches:
        pool.add(batch)
    images, twins, labels, features = rows = pool.rows(0, 5)
    assert len(pool) == 5 and pool.chunks == [2, 3]
    assert pool.bytes_per_image == bytes_per_image(COLUMNS) == 2 * 3 * 16 + 8 + 5 * 2
    assert sum(column.untyped_storage().nbytes() for column in rows) == 5 * pool.bytes_per_image
    assert torch.equal(images, to_levels(torch.cat([batch.images for batch in batches])))
    assert torch.equal(twins, to_levels(torch.cat([batch.columns["twins"] for batch in batches])))
    assert labels.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(features, torch.cat([batch.columns["features"] for batch in batches]).half())


@pytest.mark.parametrize("columns", [["images"], COLUMNS])
def test_batches_are_rows_drawn_one_ahead_then_cropped_with_one_crop_for_image_and_twin(columns):
    augmentation = Augmentation(padding=1, flip=True)
    pool, rng = make_pool(20, columns, augmentation), stream()
    pool.add(whole_batch(20))
    kept = dict(zip(columns, pool.rows(0, 20), strict=True))
    drawn, upcoming, crops = list(pool.batches(3, 6)), torch.randint(20, (6,), generator=rng), 0
    assert len(drawn) == 3
    for number, batch in enumerate(drawn):
        index = upcoming
        upcoming = torch.randint(20, (6,), generator=rng) if number < 2 else None
        before = rng.get_state()
        x = to_pixels(augmentation(kept["images"][index], rng))
        assert batch.images.dtype == torch.float32 and torch.equal(batch.images, x) and len(batch) == 6
        assert batch.columns.keys() == set(columns) - {"images"}
        crops += not torch.equal(x, to_pixels(kept["images"][index]))
        if "twins" in columns:
            again = torch.Generator()
            again.set_state(before)
            assert torch.equal(batch.columns["twins"], to_pixels(augmentation(kept["twins"][index], again)))
            assert torch.equal(batch.columns["labels"], kept["labels"][index])
            assert torch.equal(batch.columns["features"], kept["features"][index])
    assert crops == 3


def test_draws_are_uniform_with_replacement():
    pool = make_pool(10)
    pool.add(numbered(0, 10))
    batches = [numbers(batch) for batch in pool.batches(1000, 10)]
    counts = torch.bincount(torch.cat(batches), minlength=10)
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations of one count
    distinct = sum(len(batch.unique()) for batch in batches) / len(batches)
    assert abs(distinct - 10 * (1 - 0.9**10)) < 0.2  # without replacement it would be 10


def test_indices_are_drawn_on_the_device_of_their_stream(monkeypatch):
    class OnGpu:
        device = torch.device("cuda")

    class Uncropped(Augmentation):
        def draw(self, count, generator):
            return torch.empty(0), torch.empty(0)

    pool, devices = make_pool(5, augmentation=Uncropped(padding=0)), []
    pool.add(numbered(0, 5))
    pool.draws = OnGpu()
    monkeypatch.setattr(torch, "randint", lambda *_, device, **__: devices.append(device) or torch.zeros(3).long())
    assert len(list(pool.batches(2, 3))) == 2
    assert devices == 2 * [OnGpu.device]  # on the CPU, every batch would wait for a copy


def test_only_what_is_filled_is_drawn_and_overflow_is_an_error_that_leaves_the_pool_as_it_was():
    pool = make_pool(5)
    pool.storage["images"].fill_(200)
    pool.add(numbered(0, 4))
    (batch,) = pool.batches(1, 500)
    assert set(numbers(batch).tolist()) == {0, 1, 2, 3}
    batch.images.fill_(1)  # shares no memory with the pool
    before = pool.rows(0, 4)[0].clone()
    with pytest.raises(ValueError, match="5"):
        pool.add(numbered(10, 2))
    assert len(pool) == 4 and torch.equal(pool.rows(0, 4)[0], before)
    pool.add(numbered(9, 1))
    assert len(pool) == 5
    pool.clear()
    assert len(pool) == 0 and pool.chunks == []
