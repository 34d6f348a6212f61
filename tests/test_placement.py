"""A pool that is too large for one memory goes to the next, and nothing that is drawn from it changes."""

import errno
import os

import pytest
import torch
from conftest import CPU, user_error
from datafree.randomness import Streams
from programs import NAME, TINY, finished

from datafree.data import placement
from datafree.data.placement import Placement, choose_placement
from datafree.data.pool import ImagePool
from datafree.reporting.run_reader import read_run

GPU = torch.device("cuda")


@pytest.fixture
def memories(monkeypatch):
    """Sets the bytes that the GPU, the host and the disk have."""

    def have(gpu, host, disk):
        monkeypatch.setattr(placement, "host_memory", lambda: host)
        monkeypatch.setattr(placement, "device_memory", lambda device: gpu if device.type == "cuda" else host)
        monkeypatch.setattr(placement, "free_disk", lambda folder: disk)

    return have


def test_the_first_memory_with_twice_the_room_is_taken(memories, tmp_path):
    memories(gpu=200, host=400, disk=1200)
    where = {images: choose_placement(images, 10, GPU, tmp_path).kind for images in (10, 11, 20, 21, 60)}
    assert where == {10: "device", 11: "host", 20: "host", 21: "file", 60: "file"}
    assert [choose_placement(images, 10, CPU, tmp_path).kind for images in (20, 21)] == ["device", "file"]


def test_a_pool_that_no_disk_holds_is_refused_in_one_line(memories, tmp_path):
    memories(gpu=200, host=400, disk=1200)
    with user_error("the pool of 61 images", "--epochs"):
        choose_placement(61, 10, GPU, tmp_path)


def test_a_memory_of_unknown_size_is_taken(memories, tmp_path):
    memories(gpu=200, host=None, disk=0)
    assert choose_placement(10**9, 10, CPU, tmp_path).kind == "device"
    assert choose_placement(10**9, 10, GPU, tmp_path).kind == "host"


def test_a_container_s_limit_counts_as_the_memory_of_the_machine(monkeypatch, tmp_path):
    machine = placement.host_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(placement, "CGROUP_LIMITS", (str(limit), str(tmp_path / "absent")))
    limit.write_text("max\n")
    without = placement.host_memory()
    limit.write_text("1000000\n")
    assert placement.host_memory() == 1_000_000 < machine <= without


@pytest.mark.parametrize("kind", ["host", "file"])
@pytest.mark.parametrize("twins", [False, True])
def test_images_kept_elsewhere_are_drawn_as_from_the_device(kind, twins, tmp_path):
    pools = [ImagePool(40, 4, CPU, twins, place) for place in (None, Placement(CPU, kind, tmp_path))]
    x = torch.rand(40, 3, 4, 4)
    for pool in pools:
        for part in x.split(15):
            pool.add(part, *((1 - part, torch.arange(len(part))) if twins else ()))
    streams = [Streams(0)["distillation"] for _ in pools]
    for _ in range(3):
        near, far = (pool.draw(9, stream) for pool, stream in zip(pools, streams, strict=True))
        assert torch.equal(near.images, far.images)
        assert not twins or (torch.equal(near.twins, far.twins) and torch.equal(near.labels, far.labels))


def test_what_is_requested_first_is_drawn_first_whenever_it_is_fetched(tmp_path):
    pools = [ImagePool(40, 4, CPU, placement=place) for place in (None, Placement(CPU, "host"))]
    x = torch.rand(40, 3, 4, 4)
    for pool in pools:
        pool.add(x)
    stream, ahead = Streams(0)["distillation"], Streams(0)["distillation"]
    expected = [pools[0].draw(5, stream).images for _ in range(3)]
    fetch = [pools[1].request(5, ahead) for _ in range(3)]
    assert all(torch.equal(get().images, images) for get, images in zip(fetch[::-1], expected[::-1], strict=True))


def test_the_file_is_made_when_first_needed_and_has_no_name(tmp_path):
    pool = ImagePool(40, 4, CPU, placement=Placement(CPU, "file", tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    pool.add(torch.rand(3, 3, 4, 4))
    assert len(pool) == 3 and list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_cannot_reserve_the_file_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with user_error("cannot reserve", str(tmp_path), "free some space"):
        ImagePool(40, 4, CPU, placement=Placement(CPU, "file", tmp_path)).add(torch.rand(3, 3, 4, 4))


@pytest.mark.parametrize("flags", [[], ["--hl"]])
def test_a_run_whose_pool_is_a_file_gives_the_same_numbers_and_says_where_it_is(memories, tmp_path, flags):
    shown = [finished([*TINY, *flags, "--run_root", tmp_path / "memory"])]
    memories(gpu=0, host=1000, disk=10**9)
    shown.append(finished([*TINY, *flags, "--run_root", tmp_path / "file"]))
    assert "pool on cpu" in shown[0] and "pool in a mapped file" in shown[1]
    name = NAME.replace("anew", "anew-hl") if flags else NAME
    tables = [read_run(tmp_path / place / name).metrics for place in ("memory", "file")]
    assert tables[0].loss_kd.iloc[-1] > 0
    in_memory, in_file = (table.drop(columns=table.filter(regex="^seconds")) for table in tables)
    assert in_memory.equals(in_file)
    pools = [(tmp_path / place / name / "pool.bin").read_bytes() for place in ("memory", "file")]
    assert pools[0] == pools[1]
