"""A split of image files: what comes, in which order, cropped how, kept where, read by how many."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, user_error
from PIL import Image

from datafree.data import folder_images as module
from datafree.data.folder_images import FolderImages, folder_images, usable_processors
from datafree.data.specs import DamagedData, TensorImages


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


def whole(tmp_path, sizes, name="whole"):
    """Random images of these heights and widths, and their pixels (3, H, W)."""
    samples, pixels = [], []
    for i, size in enumerate(sizes):
        pixels.append(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8))
        samples.append((str(tmp_path / f"{name}{i}.png"), i))
        Image.fromarray(pixels[-1]).save(samples[-1][0])
    return samples, [torch.from_numpy(each.transpose(2, 0, 1)) for each in pixels]


def one_pass(images, seed=0, batch_size=4, **how):
    pieces = list(images.shuffled(batch_size, torch.Generator().manual_seed(seed), "cpu", **how))
    return torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])


def test_batches_resize_the_shorter_side_and_crop_the_centre(gradients):
    (images, labels), (rest, _) = FolderImages(gradients, (3, 28, 28)).batches(4, "cpu")
    assert images.shape == (4, 3, 28, 28) and rest.shape == (2, 3, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 0, 1] and images[3, 2].unique().tolist() == [100]
    # 60x40 -> 48x32 with 4 steps of grey every 0.8 pixels; the crop starts 10 pixels in
    assert abs(images[0, 0, 14, 0].item() - 10 / 0.8 * 4) <= 4 and abs(images[0, 0, 14, 27].item() - 37 / 0.8 * 4) <= 4


def test_crops_are_random_yet_decided_by_the_generator_whatever_the_number_of_readers(gradients):
    state = torch.manual_seed(1).get_state()
    images, labels = one_pass(FolderImages(gradients, (3, 16, 16), workers=0))
    assert torch.equal(torch.get_rng_state(), state)
    for workers in (1, 2, 7):
        again, labels_again = one_pass(FolderImages(gradients, (3, 16, 16), workers), batch_size=5)
        assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1] and torch.equal(images[:, 2, 0, 0].long(), 100 * labels)
    assert len({x[0].numpy().tobytes() for x in images}) == 6
    assert not torch.equal(one_pass(FolderImages(gradients, (3, 16, 16)), seed=1)[0], images)


def test_drop_last_drops_a_short_batch_unless_it_is_the_only_one(gradients):
    images = FolderImages(gradients, (3, 8, 8))
    assert [len(one_pass(images, batch_size=size, drop_last=True)[1]) for size in (4, 3, 64)] == [4, 6, 6]


def test_images_of_the_wanted_size_are_evaluated_as_they_are_and_come_whole_to_training(tmp_path):
    samples, pixels = whole(tmp_path, [(24, 40)] * 5)
    for train in (False, True):
        images = folder_images(samples, (3, 24, 40), train)
        assert isinstance(images, TensorImages) and images.crops is False
        assert torch.equal(images.images, torch.stack(pixels)) and images.labels.tolist() == [0, 1, 2, 3, 4]
    from_disk = FolderImages(samples, (3, 24, 40), crops=False)
    shuffled, labels = one_pass(from_disk)
    assert torch.equal(shuffled, torch.stack(pixels)[labels]) and labels.tolist() != [0, 1, 2, 3, 4]


def test_one_training_image_of_another_size_makes_all_of_them_cropped_at_random(tmp_path):
    samples, pixels = whole(tmp_path, [(16, 16), (16, 16), (17, 16)])
    train, test = (folder_images(samples, (3, 16, 16), train) for train in (True, False))
    assert isinstance(train, FolderImages) and train.crops and isinstance(test, TensorImages)
    assert torch.equal(test.images[:2], torch.stack(pixels[:2]))  # evaluation: image by image
    x, y = one_pass(train)
    assert not torch.equal(x[y.tolist().index(0)], pixels[0])


def test_one_channel_is_grey(tmp_path):
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "a.png")
    (x, _), *_ = FolderImages([(str(tmp_path / "a.png"), 0)], (1, 8, 8)).batches(4, "cpu")
    assert x.shape == (1, 1, 8, 8) and x.unique().tolist() == [124]  # 0.299 * 10 + 0.587 * 200 + 0.114 * 30 = 123.8


def test_what_takes_more_than_its_room_in_memory_is_read_at_every_pass(tmp_path, monkeypatch):
    samples, _ = whole(tmp_path, [(8, 8)] * 4)  # 4 * 192 bytes
    for room, memory, kept in ((768, None, True), (767, None, False), (768, 8 * 768, True), (768, 8 * 767, False)):
        monkeypatch.setattr(module, "IN_MEMORY", room)
        monkeypatch.setattr(module, "host_memory", lambda memory=memory: memory)
        for train in (True, False):
            images = folder_images(samples, (3, 8, 8), train, workers=3)
            assert isinstance(images, TensorImages) is kept and not images.crops
            assert kept or images.workers == 3


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_unreadable_image_is_named_in_one_line_and_the_readers_end(gradients, workers):
    with open(gradients[4][0], "wb") as file:
        file.write(b"no image")
    with user_error("4.png", kind=DamagedData):
        list(FolderImages(gradients, (3, 16, 16), workers).batches(4, "cpu"))
    assert not any(thread.name.startswith("images") for thread in threading.enumerate())


def test_a_pass_that_is_given_up_leaves_no_reader_and_reads_no_further(tmp_path, monkeypatch):
    samples, _ = whole(tmp_path, [(8, 8)])
    read, load = [], module.load_pixels
    monkeypatch.setattr(module, "load_pixels", lambda *how: (read.append(1), time.sleep(0.001), load(*how))[2])
    batches = FolderImages(samples * 1000, (3, 8, 8), workers=2).batches(10, "cpu")
    next(batches)
    batches.close()
    assert len(read) <= 30 and not any(thread.name.startswith("images") for thread in threading.enumerate())


def test_a_bad_image_ends_the_reading_of_all_that_comes_after_it(tmp_path, monkeypatch):
    samples, _ = whole(tmp_path, [(8, 8)])
    read, load = [], module.load_pixels
    monkeypatch.setattr(module, "load_pixels", lambda *how: (read.append(1), time.sleep(0.002), load(*how))[2])
    with user_error("absent.png"):
        FolderImages([(str(tmp_path / "absent.png"), 0), *samples * 1000], (3, 8, 8), workers=2).in_memory()
    assert len(read) < 500


def test_reading_takes_no_processes_and_no_shared_memory(gradients, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was forked"))
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda *_: pytest.fail("shared memory was asked for"))
    batches = FolderImages(gradients, (3, 16, 16), workers=4).batches(2, "cpu")
    next(batches)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("images")]
    assert 1 <= len(names) <= 4 and multiprocessing.active_children() == []
    batches.close()


def test_processors_are_counted_by_what_the_job_may_use(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(module, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(module, "CFS", tmp_path)
    assert usable_processors() == 6
    for text, count in (("max 100000\n", 6), ("250000 100000\n", 3), ("50000 100000\n", 1), ("900000 100000\n", 6)):
        (tmp_path / "cpu.max").write_text(text)
        assert usable_processors() == count
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    for quota, count in (("-1\n", 6), ("200000\n", 2)):
        (tmp_path / "cpu.cfs_quota_us").write_text(quota)
        assert usable_processors() == count
    assert FolderImages([], (3, 8, 8)).workers == 2 and FolderImages([], (3, 8, 8), 20).workers == 20
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.cfs_quota_us").unlink()
    assert FolderImages([], (3, 8, 8)).workers == 8


SMALL_SHM = """
mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99
exec {python} -c "
from datafree.data.folder_images import FolderImages
images = FolderImages([('{path}', 3)] * 40, (3, 224, 224), workers=4)
print(sum(labels.sum().item() for _, labels in images.batches(16, 'cpu')))"
"""


@pytest.mark.slow
def test_a_small_dev_shm_is_no_matter(gradients):
    script = SMALL_SHM.format(python=sys.executable, path=gradients[0][0])
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a tmpfs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "120\n", "")
