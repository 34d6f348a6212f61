"""An image file gives the pixels that it should, in every mode and bit depth; one that gives none is named."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import user_error
from PIL import Image, features
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.transforms import RandomResizedCrop, v2

from datafree.data.image_files import centre, crop_box, is_image, load_pixels, quieten, random_crop, read_image, size_of
from datafree.data.specs import DamagedData


def png(width, height, depth, colour, rows):
    """A PNG file written by hand: depth bits a sample, colour type 0 grey, 2 RGB; rows without filter bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pixels_of(path, channels=3):
    return np.asarray(read_image(str(path), channels)).tolist()


def saved(path, array, mode=None, **how):
    image = Image.fromarray(np.asarray(array)) if mode is None else array
    image.save(path, **how)
    return path


MODES = {  # mode: a pixel, and what it is in RGB
    "1": (255, [255, 255, 255]),
    "L": (77, [77, 77, 77]),
    "LA": ((77, 0), [77, 77, 77]),  # transparency is not applied
    "RGB": ((1, 2, 3), [1, 2, 3]),
    "RGBA": ((1, 2, 3, 0), [1, 2, 3]),
    "CMYK": ((255, 0, 0, 0), [0, 255, 255]),
    "YCbCr": ((100, 128, 128), [100, 100, 100]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path, mode):
    pixel, expected = MODES[mode]
    name = "a.tif" if mode in ("CMYK", "YCbCr") else "a.png"
    Image.new(mode, (2, 1), pixel).save(tmp_path / name)
    assert Image.open(tmp_path / name).mode == mode
    assert pixels_of(tmp_path / name) == [[expected] * 2]
    grey = round(0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2])  # ITU-R 601-2 luma
    assert pixels_of(tmp_path / name, 1) == [[grey] * 2]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_palette_gives_its_colours_transparent_or_not_and_no_warning(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quieten()
        assert pixels_of(tmp_path / "a.png") == [[[10, 20, 30], [40, 50, 60]]]
    assert told == []


def test_an_animation_gives_its_first_frame_and_orientation_is_not_applied(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "lime")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        how = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
        assert pixels_of(tmp_path / name) == [[[255, 0, 0]] * 3] * 2
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    frames[0].save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg"), 3).size == (3, 2) and size_of(str(tmp_path / "a.jpg")) == (2, 3)


def test_names_of_images_are_told_in_upper_and_lower_case():
    assert all(map(is_image, ("a.JPG", "a.Jpeg", "b.x.png", "c.jfif", "d.AVIF", "e.TIFF", "f.gif", "g.webp", "h.ppm")))
    assert all(is_image(f"a{ending}") for ending in IMG_EXTENSIONS)
    assert not any(map(is_image, ("png", "a.txt", "Thumbs.db", "a.png.part", "desktop.ini", "a.npy", "b.pdf")))


def test_ordinary_photographs_are_read_and_cropped_as_torchvision_does(tmp_path):
    crop = v2.Compose([v2.Resize(37), v2.CenterCrop(32)])  # 37 = 32 * 256 / 224
    for i, (width, height) in enumerate([(60, 40), (40, 61), (33, 33), (20, 300), (31, 32)]):
        values = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = str(saved(tmp_path / f"{i}.jpg", values))
        expected = np.asarray(crop(default_loader(path))).transpose(2, 0, 1)
        assert np.array_equal(load_pixels(path, 3, lambda image: centre(image, (32, 32))), expected)


def test_an_image_of_the_wanted_size_is_left_as_it_is_and_another_covers_the_wanted_shape():
    values = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    assert np.array_equal(np.asarray(centre(image, (24, 40))), values)
    for size in ((24, 40), (40, 24), (7, 7), (1, 1), (1, 9)):
        for width, height in ((41, 24), (24, 40), (500, 20), (3, 1000), (1, 1), (1, 5000)):
            assert centre(Image.new("L", (width, height)), size).size == size[::-1]
            assert random_crop(Image.new("L", (width, height)), size, torch.Generator()).size == size[::-1]


def test_a_stripe_is_not_blown_up_to_its_whole_length(monkeypatch):
    resize, most = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *how: (most.append(size[0] * size[1]), resize(self, size, *how))[1]
    )
    levels = (np.arange(6000) >= 3000).reshape(1, 6000).astype(np.uint8) * 255  # the right half is white
    cropped = np.asarray(centre(Image.fromarray(levels), (32, 32)))
    assert most == [37 * 37 * 100] and cropped[:, 0].max() < 30 and cropped[:, 31].min() > 225


def test_random_crops_are_torchvisions_for_every_shape_and_seed():
    for seed, (height, width) in enumerate([(40, 60), (61, 33), (5, 5), (1, 9), (200, 3), (3, 200), (2, 1)] * 20):
        torch.manual_seed(seed)
        expected = RandomResizedCrop.get_params(Image.new("L", (width, height)), (0.08, 1), (3 / 4, 4 / 3))
        assert crop_box(height, width, torch.Generator().manual_seed(seed)) == tuple(expected)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = png(64, 64, 8, 0, [row.tobytes() for row in noise])
    os.symlink(tmp_path / "gone.png", tmp_path / "link.png")
    bad = {
        "empty.png": (b"", "empty"),
        "words.png": (b"<html>not found</html>", "no such image format"),
        "cut.png": (whole[:2000], "truncated"),
        "bomb.png": (png(20_000, 20_000, 8, 0, []), "exceeds limit"),
        "absent.png": (None, "No such file"),
        "link.png": (None, "it is a link to"),
    }
    for name, (content, word) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with user_error(str(tmp_path / name), word, kind=DamagedData):
            load_pixels(str(tmp_path / name), 3, lambda image: image)
    (tmp_path / "folder.png").mkdir()
    with user_error("folder.png", kind=DamagedData):
        size_of(str(tmp_path / "folder.png"))


def test_an_image_below_pillows_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    path = str(saved(tmp_path / "a.png", np.zeros((8, 8), dtype=np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # it warns of 41 and refuses 81
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read_image(path, 3)
        assert len(told) == 1
        quieten()
        assert size_of(path) == (8, 8) and load_pixels(path, 3, lambda image: image).shape == (3, 8, 8)
    assert len(told) == 1


FORMATS = ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "jp2", "avif"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_of_any_format_is_read_or_refused_in_one_line(tmp_path, capfd, name):
    check = {"avif": "avif", "webp": "webp", "jp2": "jpg_2000"}.get(name)
    if check and not features.check(check):
        pytest.skip(f"this Pillow has no {name}")
    rng, path = np.random.default_rng(0), str(tmp_path / f"a.{name}")
    how = {"compression": "tiff_lzw"} if name == "tif" else {}
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, **how)
    whole, refused = np.fromfile(path, dtype=np.uint8), 0
    for _ in range(60):
        data = whole.copy()
        data[rng.integers(0, min(len(data), rng.choice([64, 4096])), rng.integers(1, 8))] = rng.integers(0, 256)
        data[: len(data) if rng.random() < 0.7 else rng.integers(0, len(data))].tofile(path)
        quieten()
        try:
            assert load_pixels(path, 3, lambda image: centre(image, (8, 8))).shape == (3, 8, 8)
        except DamagedData as error:
            refused += 1
            assert path in str(error) and "\n" not in str(error)
    assert refused > 0 and (name == "tif" or capfd.readouterr() == ("", ""))  # libtiff prints by itself
