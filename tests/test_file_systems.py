"""File systems that lack a call: what is a nicety is gone without, and what fails for another reason still fails."""

import errno
import fcntl
import os

import pytest
import torch
from conftest import CPU, user_error
from programs import FOLDER, QUICK, few_digits, finished, json_of  # noqa: F401
from test_pool import make_pool, whole_batch

from datafree import files
from datafree.data.placement import Placement

LACKING = [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]


def refuse(monkeypatch, number, *calls):
    """Makes these calls fail with that error."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    for module, name in calls:
        monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("number", LACKING)
@pytest.mark.slow
def test_a_run_needs_no_lock_no_sync_and_no_permissions(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number, (fcntl, "flock"), (os, "fsync"), (os, "chmod"), (os, "posix_fallocate"))
    finished([*QUICK, "--run_root", tmp_path])
    assert json_of(tmp_path / FOLDER / "status.json")["state"] == "finished"
    assert len(torch.load(tmp_path / FOLDER / "last.pth", weights_only=True)["pool_chunks"]) == 3


def test_a_disk_that_fails_to_sync_is_reported(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.EIO, (os, "fsync"))
    with user_error("cannot write", "Input/output error"):
        files.save({"a": 1}, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_in_a_file_is_written_full_where_room_cannot_be_reserved(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.EOPNOTSUPP, (os, "posix_fallocate"))
    sizes, from_file = [], torch.from_file

    def look(name, **how):
        sizes.append((os.stat(name).st_size, os.stat(name).st_blocks * 512))
        return from_file(name, **how)

    monkeypatch.setattr(torch, "from_file", look)
    pool, batch = make_pool(4000, placement=Placement(CPU, "file", tmp_path)), whole_batch(3)
    pool.add(batch)
    size, on_disk = sizes[0]
    assert size == 4000 * pool.bytes_per_image <= on_disk
    assert torch.equal(pool.rows(0, 3)[0], (batch.images * 255).round().to(torch.uint8))


def test_a_file_system_that_maps_no_files_is_named(tmp_path, monkeypatch):
    def fail(name, **how):
        raise RuntimeError(f"unable to mmap 12 bytes from file <{name}>: No such device (19)")

    monkeypatch.setattr(torch, "from_file", fail)
    with user_error("cannot map a file", str(tmp_path), "--run_root"):
        make_pool(40, placement=Placement(CPU, "file", tmp_path)).add(whole_batch(3))
