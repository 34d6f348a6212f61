"""The pool of synthetic images."""

import pytest
import torch
from datafree.data.augment import to_levels

from datafree.data.pool import ImagePool


def numbered(first: int, count: int, size: int = 4):
    """Image i is filled with level i."""
    return (torch.arange(first, first + count).float() / 255).view(-1, 1, 1, 1).expand(-1, 3, size, size)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def stored(pool, end):
    """The first images of a pool."""
    return pool.rows(0, end)[0]


def draw(pool, count, generator):
    return pool.draw(count, generator).images


def test_an_image_takes_three_bytes_a_pixel():
    pool = ImagePool(10, 32)
    assert pool.bytes_per_image == 3 * 32 * 32
    assert sum(column.untyped_storage().nbytes() for column in pool.rows(0, 10)) == 10 * 3 * 32 * 32
    assert stored(pool, 10).dtype == torch.uint8


def test_images_come_back_as_the_nearest_levels_in_the_order_they_came():
    pool = ImagePool(5, 4)
    x = torch.rand(5, 3, 4, 4)
    pool.add(x[:2])
    pool.add(x[2:])
    assert len(pool) == 5 and torch.equal(stored(pool, 5), to_levels(x))


def test_only_what_is_filled_is_drawn():
    pool = ImagePool(100, 4)
    stored(pool, 100).fill_(200)
    pool.add(numbered(0, 3))
    assert set(draw(pool, 500, rng())[:, 0, 0, 0].tolist()) == {0, 1, 2}
    pool.add(numbered(3, 2))
    assert set(draw(pool, 500, rng())[:, 0, 0, 0].tolist()) == {0, 1, 2, 3, 4}


def test_draws_are_uniform_with_replacement():
    pool = ImagePool(10, 2)
    pool.add(numbered(0, 10, 2))
    generator = rng()
    batches = torch.stack([draw(pool, 10, generator)[:, 0, 0, 0].long() for _ in range(1000)])
    drawn = batches.flatten()
    counts = torch.bincount(drawn, minlength=10)
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations of one count
    distinct = sum(len(batch.unique()) for batch in batches) / len(batches)
    assert abs(distinct - 10 * (1 - 0.9**10)) < 0.2  # without replacement it would be 10


def test_a_draw_is_whole_uint8_images_of_the_asked_number():
    pool = ImagePool(4, 4)
    x = torch.rand(4, 3, 4, 4)
    pool.add(x)
    drawn = draw(pool, 7, rng())
    assert drawn.shape == (7, 3, 4, 4) and drawn.dtype == torch.uint8
    assert all(any(torch.equal(image, kept) for kept in to_levels(x)) for image in drawn)


def test_draws_are_decided_by_their_generator_alone():
    pool = ImagePool(50, 2)
    pool.add(numbered(0, 50, 2))
    first = draw(pool, 20, rng(1))
    torch.manual_seed(9)
    assert torch.equal(draw(pool, 20, rng(1)), first) and not torch.equal(draw(pool, 20, rng(2)), first)


def test_overflow_is_an_error_that_leaves_the_pool_as_it_was():
    pool = ImagePool(5, 4)
    pool.add(numbered(0, 4))
    before = stored(pool, 4).clone()
    with pytest.raises(ValueError, match="5"):
        pool.add(numbered(10, 2))
    assert len(pool) == 4 and torch.equal(stored(pool, 4), before)
    pool.add(numbered(9, 1))
    assert len(pool) == 5


def test_a_drawn_batch_does_not_share_memory_with_the_pool():
    pool = ImagePool(2, 4)
    pool.add(numbered(0, 2))
    draw(pool, 4, rng()).fill_(77)
    assert set(stored(pool, 2).flatten().tolist()) == {0, 1}
