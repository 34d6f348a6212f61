"""A pool that is too large for one memory goes to the next, and nothing that is drawn from it changes."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, user_error
from test_pool import COLUMNS, make_pool, stream, whole_batch

from datafree.data import placement
from datafree.data.augmentation import Augmentation
from datafree.data.placement import Placement, choose_placement

GPU = torch.device("cuda")


@pytest.fixture
def memories(monkeypatch):
    """Sets the bytes that the GPU, the host and the disk have."""

    def have(gpu, host, disk):
        monkeypatch.setattr(placement, "host_memory", lambda: host)
        monkeypatch.setattr(placement, "device_memory", lambda device: gpu if device.type == "cuda" else host)
        monkeypatch.setattr(placement, "free_disk", lambda folder: disk)

    return have


def test_the_memory_of_a_gpu_is_its_own_but_for_apples(monkeypatch):
    monkeypatch.setattr(placement, "host_memory", lambda: 7)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda found: SimpleNamespace(total_memory=5))
    kinds = [torch.device(kind) for kind in ("cpu", "mps", "xpu")]
    assert [placement.device_memory(kind) for kind in kinds] == [7, 7, 5]


def test_the_first_memory_with_twice_the_room_or_of_unknown_size_is_taken(memories, tmp_path):
    memories(gpu=200, host=400, disk=1200)
    where = {images: choose_placement(images, 10, GPU, tmp_path).kind for images in (10, 11, 20, 21, 60)}
    assert where == {10: "device", 11: "host", 20: "host", 21: "file", 60: "file"}
    assert [choose_placement(images, 10, CPU, tmp_path / "new").kind for images in (20, 21)] == ["device", "file"]
    with user_error("the pool of 61 images", "--epochs"):
        choose_placement(61, 10, GPU, tmp_path)
    memories(gpu=200, host=None, disk=0)
    assert [choose_placement(10**9, 10, device, tmp_path).kind for device in (CPU, GPU)] == ["device", "host"]


def test_a_container_s_limit_counts_as_the_memory_of_the_machine(monkeypatch, tmp_path):
    machine = placement.host_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(placement, "CGROUP_LIMITS", (str(limit), str(tmp_path / "absent")))
    limit.write_text("max\n")
    without = placement.host_memory()
    limit.write_text("1000000\n")
    assert placement.host_memory() == 1_000_000 < machine <= without


@pytest.mark.parametrize("kind", ["host", "file"])
def test_what_is_kept_elsewhere_is_drawn_as_from_the_device(kind, tmp_path):
    whole = whole_batch(40)
    near, far = (
        make_pool(40, COLUMNS, Augmentation(1, True), place, stream())
        for place in (Placement(CPU), Placement(CPU, kind, tmp_path / "new"))
    )
    assert not (tmp_path / "new").exists()  # the file is made when first needed
    for pool in (near, far):
        pool.add(whole)
    for expected, found in zip(near.batches(4, 9), far.batches(4, 9), strict=True):
        assert torch.equal(found.images, expected.images) and found.columns.keys() == expected.columns.keys()
        assert all(torch.equal(found.columns[name], values) for name, values in expected.columns.items())
    assert kind == "host" or list((tmp_path / "new").iterdir()) == []  # and has no name


def test_a_disk_that_cannot_reserve_the_file_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with user_error("cannot reserve", str(tmp_path), "free some space"):
        make_pool(40, placement=Placement(CPU, "file", tmp_path)).add(whole_batch(3))
