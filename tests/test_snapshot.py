"""A state is restored bit for bit; whatever was damaged since is refused, and what grows is only ever appended to."""

import os

import pytest
import torch
from conftest import CPU, user_error
from torch import nn

from datafree.data.augmentation import Augmentation
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool, image_column
from datafree.engine.randomness import Streams
from datafree.runs.run import Progress
from datafree.runs.snapshot import Snapshot

SIZE = 8
COLUMNS = {"images": image_column((3, SIZE, SIZE)), "labels": ((), torch.int64)}


def new_pool(capacity=12):
    rng = torch.Generator()
    return ImagePool(capacity, COLUMNS, Placement(CPU), Augmentation(0, False), rng, rng)


def add(pool, count):
    pool.add(Batch(torch.rand(count, 3, SIZE, SIZE), {"labels": torch.randint(9, (count,))}))


def parts(seed):
    torch.manual_seed(seed)
    return {"net": nn.Linear(3, 2), "streams": Streams(seed, CPU), "progress": Progress(epoch=seed)}


@pytest.fixture
def saved(tmp_path):
    """A folder with a state of two rounds, 4 and 5 images; the pool; what the streams draw next."""
    own, pool = parts(1), new_pool()
    torch.rand(3, generator=own["streams"]["a"])
    snapshot = Snapshot(tmp_path / "run", own, pool)
    snapshot.folder.mkdir()
    for count in (4, 5):
        add(pool, count)
        snapshot.save()
    return snapshot, (torch.rand(2), torch.rand(2, generator=own["streams"]["a"]))


def test_a_state_is_restored_with_pool_and_random_numbers(saved):
    snapshot, drawn = saved
    others, pool = parts(2), new_pool()
    add(pool, 3)  # gone afterwards
    Snapshot(snapshot.folder, others, pool).load()
    assert torch.equal(others["net"].weight, snapshot.parts["net"].weight) and others["progress"].epoch == 1
    assert torch.equal(torch.rand(2), drawn[0])
    assert torch.equal(torch.rand(2, generator=others["streams"]["a"]), drawn[1])
    assert pool.chunks == [4, 5]
    for before, after in zip(snapshot.pool.rows(0, 9), pool.rows(0, 9), strict=True):
        assert torch.equal(before, after)


def test_where_nothing_was_saved_nothing_is_changed(tmp_path):
    own = parts(1)
    Snapshot(tmp_path, own, new_pool()).load()
    assert own["progress"].epoch == 1


def test_saving_writes_of_the_pool_what_is_new(tmp_path, monkeypatch):
    pool, written = new_pool(4000), []
    snapshot, rows = Snapshot(tmp_path, {}, pool), pool.rows
    monkeypatch.setattr(pool, "rows", lambda start, end: (written.append((start, end)), rows(start, end))[1])
    sizes = []
    for _ in range(40):
        add(pool, 100)
        snapshot.save()
        sizes.append((tmp_path / "last.pth").stat().st_size)
    assert written == [(start, start + 100) for start in range(0, 4000, 100)]
    assert sizes[-1] - sizes[0] < 2000  # the state itself grows by two numbers a round


def test_a_pool_that_lost_images_while_the_run_went_on_is_not_filled_with_holes(saved):
    snapshot, _ = saved
    os.truncate(snapshot.folder / "pool.bin", 10)
    add(snapshot.pool, 2)
    with user_error("pool.bin has lost images"):
        snapshot.save()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def change(path, act):
    content = torch.load(path, weights_only=True)
    act(content)
    torch.save(content, path)


DAMAGE = {
    "a state cut short": (lambda run: os.truncate(run / "last.pth", 1000), "last.pth is damaged"),
    "a flipped bit in the state": (lambda run: flip(run / "last.pth", 2000), "last.pth is damaged"),
    "a state without one part": (
        lambda run: change(run / "last.pth", lambda c: c.pop("net")),
        "another run or version",
    ),
    "one weight less": (lambda run: change(run / "last.pth", lambda c: c["net"].pop("bias")), "another run or version"),
    "a state that is a tensor": (lambda run: torch.save(torch.zeros(3), run / "last.pth"), "no run state"),
    "a state that is empty": (lambda run: torch.save({}, run / "last.pth"), "another run or version"),
    "no pool": (lambda run: (run / "pool.bin").unlink(), "cannot read"),
    "a pool cut short": (lambda run: os.truncate(run / "pool.bin", 100), "pool.bin has 100 bytes"),
    "a flipped bit in the pool": (lambda run: flip(run / "pool.bin", 500), "pool.bin is damaged"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_state_is_refused(what, saved):
    damage, words = DAMAGE[what]
    damage(saved[0].folder)
    with user_error(words):
        Snapshot(saved[0].folder, parts(2), new_pool()).load()
