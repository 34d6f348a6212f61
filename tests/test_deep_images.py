"""Images of more than 8 bits a sample give the pixels that they should, or are refused with what they are."""

import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import user_error
from PIL import Image, features
from test_image_files import pixels_of, png, saved

from datafree.data.image_files import load_pixels, size_of
from datafree.data.specs import DamagedData


def refused(path, *words):
    with user_error(str(path), *words, kind=DamagedData):
        load_pixels(str(path), 3, lambda image: image)


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped(tmp_path):
    grey = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1, 128, 255]]
    for name in ("a.png", "a.tif"):
        assert pixels_of(saved(tmp_path / name, grey), 1) == expected
        assert pixels_of(tmp_path / name) == [[[value] * 3 for value in expected[0]]]
    (tmp_path / "a.pgm").write_bytes(b"P5 6 1 65535\n" + grey.astype(">u2").tobytes())
    assert pixels_of(tmp_path / "a.pgm", 1) == expected
    (tmp_path / "big.tif").write_bytes(b"")
    saved(tmp_path / "big.tif", Image.frombytes("I;16B", (6, 1), grey.astype(">u2").tobytes()), "I;16B")
    assert pixels_of(tmp_path / "big.tif", 1) == expected


def test_colours_of_sixteen_bits_keep_their_high_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, [struct.pack(">HHH", 0x80FF, 0xFF00, 0x00FF)]))
    assert pixels_of(tmp_path / "a.png") == [[[128, 255, 0]]]


def test_32_bits_have_their_white_at_the_least_of_1_255_4095_and_65535_that_holds_them(tmp_path):
    def levels(values, kind):
        return pixels_of(saved(tmp_path / "a.tif", np.array([values], dtype=kind)), 1)[0]

    assert levels([0, 0.25, 1], np.float32) == [0, 64, 255]
    assert levels([0, 1.4, 255], np.float32) == [0, 1, 255]
    assert levels([0, 32, 4000], np.float32) == [0, 2, 249]
    assert levels([0, 257, 65535], np.float32) == [0, 1, 255]
    assert levels([0, 1, 255], np.int32) == [0, 1, 255]
    assert levels([0, 514, 65535], np.int32) == [0, 2, 255]
    for bad in ([-1, 5, 9], [0, 1, 70000]):
        saved(tmp_path / "bad.tif", np.array([bad], dtype=np.int32))
        with user_error("bad.tif", "8 or 16 bits", kind=DamagedData):
            load_pixels(str(tmp_path / "bad.tif"), 1, lambda image: image)
    saved(tmp_path / "nan.tif", np.array([[0, np.nan]], dtype=np.float32))
    with user_error("nan.tif", kind=DamagedData):
        load_pixels(str(tmp_path / "nan.tif"), 3, lambda image: image)


def test_twelve_bits_in_a_tiff_are_no_sixteen(tmp_path):
    def levels(values, kind=np.uint16, **tags):
        image = Image.fromarray(np.array([values], dtype=kind))
        image.save(tmp_path / "a.tif", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})
        return pixels_of(tmp_path / "a.tif", 1)[0]

    for kind in (np.uint16, np.int32, np.float32):
        assert levels([0, 2048, 4095], kind) == [0, 128, 255]  # 2048 / 4095 * 255 = 127.5...
        assert levels([0, 2048, 4096], kind) == [0, 8, 16]
        assert levels([0, 128, 255], kind) == [0, 128, 255]
    assert levels([0, 200, 16000], t281=16000) == [0, 3, 249]  # of 14 bits, 16,383, as MaxSampleValue says
    assert levels([0, 100, 200], t281=1023) == [0, 25, 50]
    assert levels([0, 100, 2000], t281=1023) == [0, 0, 8]  # a tag that is wrong
    assert levels([0, 2048, 4095], t262=0) == [255, 127, 0]  # white is zero


def test_colours_of_twelve_bits_in_sixteen_are_refused_where_a_tag_says_so(tmp_path):
    colours = tmp_path / "a.tif"
    tiff(colours, np.array([[[4095, 0, 2048]]], dtype=np.uint16), photometric=2, brightest=4095)
    refused(colours, "its colours have 12 bits of 16", "8 or 16 bits")
    tiff(colours, np.array([[[65535, 0, 32896]]], dtype=np.uint16), photometric=2, brightest=65535)
    assert pixels_of(colours) == [[[255, 0, 128]]]


def test_twelve_bits_that_are_packed_are_what_they_say(tmp_path):
    packed = bytes([0x00, 0x08, 0x00, 0x10])  # 0x000, 0x800, 0x100, in 12 bits each
    entries = [(256, 3), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 5)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)
    file = struct.pack("<2sHI", b"II", 42, 14) + packed + b"\0\0" + directory + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(file)
    assert np.asarray(Image.open(tmp_path / "a.tif")).tolist() == [[0, 2048, 256]]
    assert pixels_of(tmp_path / "a.tif", 1) == [[0, 128, 16]]


def test_a_dark_16_bit_png_is_dark_even_where_pillow_gives_it_as_integers(tmp_path, monkeypatch):
    saved(tmp_path / "a.png", np.array([[0, 200, 255]], dtype=np.uint16))
    opened = Image.open(tmp_path / "a.png")
    integers = Image.fromarray(np.array([[0, 200, 255]], dtype=np.int32))  # as Pillow did before 10
    integers.format = opened.format
    monkeypatch.setattr(Image, "open", lambda path: integers)
    assert pixels_of(tmp_path / "a.png", 1) == [[0, 1, 1]]


def test_jpeg_2000_and_pfm_have_their_white_where_their_formats_have_it(tmp_path):
    if features.check("jpg_2000"):
        saved(tmp_path / "a.jp2", np.array([[0, 257, 4000, 257]] * 4, dtype=np.uint16), irreversible=False)
        assert pixels_of(tmp_path / "a.jp2", 1)[0] == [0, 1, 16, 1]
    for scale, kind in (("-1.0", "<f4"), ("1.0", ">f4")):  # a Portable FloatMap, whose white is 1
        (tmp_path / "a.pnm").write_bytes(f"Pf 2 1\n{scale}\n".encode() + np.array([0.5, 1], dtype=kind).tobytes())
        assert pixels_of(tmp_path / "a.pnm", 1) == [[128, 255]]


@pytest.mark.parametrize("white", [1, 15, 100, 255, 1023, 4095, 65535])
def test_a_portable_map_has_its_white_where_it_says(tmp_path, white):
    values = np.array([0, white // 3, white], dtype=">u2" if white > 255 else "u1")
    expected = [round(value * 255 / white) for value in values.tolist()]
    for kind, shape in (("5", "3 1"), ("6", "1 1")):
        (tmp_path / "a.pnm").write_bytes(f"P{kind} {shape} {white}\n".encode() + values.tobytes())
        assert pixels_of(tmp_path / "a.pnm") == [[[v] * 3 for v in expected] if kind == "5" else [expected]]


def tiff(path, values, photometric=1, order="<", planes=False, packed=False, brightest=None):
    """A TIFF file written by hand of values (H, W, samples): order "<" little-endian, ">" big-endian."""
    values = np.asarray(values)
    H, W, samples = values.shape
    arrays = [values[..., i] for i in range(samples)] if planes else [values]
    parts = [array.astype(values.dtype.newbyteorder(order)).tobytes() for array in arrays]
    parts = [zlib.compress(part) for part in parts] if packed else parts
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = {
        256: (3, [W]),
        257: (3, [H]),
        258: (3, [8 * values.dtype.itemsize] * samples),
        259: (3, [8 if packed else 1]),
    }
    entries |= {262: (3, [photometric]), 273: (4, [0] * len(parts)), 277: (3, [samples]), 278: (3, [H])}
    entries |= {279: (4, [len(part) for part in parts]), 284: (3, [2 if planes else 1]), 339: (3, [kind] * samples)}
    entries |= {281: (3, [brightest] * samples)} if brightest else {}
    first = 8 + 2 + 12 * len(entries) + 4  # byte of what is too long for the directory
    after = first + sum(len(v) * {3: 2, 4: 4}[t] for t, v in entries.values() if len(v) * {3: 2, 4: 4}[t] > 4)
    entries[273] = (4, [after + sum(map(len, parts[:i])) for i in range(len(parts))])
    directory, longer = b"", b""
    for tag, (t, numbers) in sorted(entries.items()):
        field = b"".join(struct.pack(order + {3: "H", 4: "I"}[t], number) for number in numbers)
        directory += struct.pack(order + "HHI", tag, t, len(numbers))
        directory += field.ljust(4, b"\0") if len(field) <= 4 else struct.pack(order + "I", first + len(longer))
        longer += field if len(field) > 4 else b""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    path.write_bytes(head + directory + struct.pack(order + "I", 0) + longer + b"".join(parts))
    return path


COLOURS = np.array([[[0, 0.5, 1], [1, 0, 0.25]]])  # two pixels
GREY = np.array([[[0], [0.5], [1]]])


def levels(values, kind):
    """In a type, white being its highest value; of floating point, 1."""
    white = np.iinfo(kind).max if np.dtype(kind).kind in "ui" else 1
    return np.floor(values * white).astype(kind)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_whole_numbers_of_8_and_16_bits_in_a_tiff_are_right_whatever_the_order_or_refused(tmp_path, order, packed):
    path, how = tmp_path / "a.tif", {"order": order, "packed": packed}
    for kind in (np.uint8, np.uint16):
        assert pixels_of(tiff(path, levels(COLOURS, kind), 2, **how)) == [[[0, 127, 255], [255, 0, 63]]]
        assert pixels_of(tiff(path, levels(GREY, kind), 1, **how), 1) in ([[0, 127, 255]], [[0, 128, 255]])
        tiff(path, levels(COLOURS, kind), 2, planes=True, **how)
        if kind is np.uint8 or packed:
            assert pixels_of(path) == [[[0, 127, 255], [255, 0, 63]]]
        else:  # Pillow gives other pixels
            refused(path, "planes of 16 bits", "8 or 16 bits a sample, as PNG")
    refused(tiff(path, np.array([[[-1], [1]]], dtype=np.int8), **how), "signed")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_floating_point_and_signed_numbers_in_a_tiff_are_right_whatever_the_order_or_refused(tmp_path, order, packed):
    path, how = tmp_path / "a.tif", {"order": order, "packed": packed}
    for values, expected in (
        (GREY.astype(np.float32), [0, 128, 255]),
        (np.array([[[0], [100], [255]]], np.int16), [0, 100, 255]),
    ):
        tiff(path, values, **how)
        if order == "<" or not packed:
            assert pixels_of(path, 1) == [expected]
        else:  # Pillow turns their bytes round twice
            refused(path, "big-endian and compressed")


ALPHA = np.concatenate([COLOURS, np.full((1, 2, 1), 0.5)], 2)
UNOPENED = {  # values, photometric interpretation, pixels
    "colours of 32 bits": (COLOURS.astype(np.float32), 2, [[0, 128, 255], [255, 0, 64]]),
    "colours and transparency of 64 bits": (ALPHA, 2, [[0, 128, 255], [255, 0, 64]]),
    "colours of whole numbers": ((COLOURS * 255).astype(np.uint32), 2, [[0, 127, 255], [255, 0, 63]]),
    "double precision": (GREY, 1, [[0] * 3, [128] * 3, [255] * 3]),
    "half precision, white is zero": (GREY.astype(np.float16), 0, [[255] * 3, [128] * 3, [0] * 3]),
    "grey and transparency of 16 bits": (levels(COLOURS[..., :2], np.uint16), 1, [[0] * 3, [255] * 3]),
}


@pytest.mark.parametrize("what", UNOPENED)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planes", [False, True])
def test_a_tiff_that_pillow_does_not_open_is_read(tmp_path, what, order, packed, planes):
    pytest.importorskip("tifffile")
    values, photometric, expected = UNOPENED[what]
    path = tiff(tmp_path / "a.tif", values, photometric, order, planes and values.shape[2] > 1, packed)
    assert size_of(str(path)) == values.shape[:2]
    found = np.array(pixels_of(path))
    assert abs(found - [expected]).max() <= ("zero" in what), found  # 127.5 turned round
    path.write_bytes(path.read_bytes()[:-8])
    refused(path, "neither Pillow nor tifffile reads it", "8 or 16 bits a sample")


OTHERS = {
    "whole numbers of 32 bits": (levels(GREY, np.uint32), 1, "its pixels reach from 0 to 4.29497e+09"),
    "colours and whole numbers of 32 bits": (levels(COLOURS, np.uint32), 2, "its pixels reach from 0 to 4.29"),
    "a colour too many": (np.zeros((1, 2, 5), np.float64), 5, "a TIFF of 5 x float64, neither grey nor red, green and"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_tiff_is_called_what_it_is(tmp_path, what):
    pytest.importorskip("tifffile")
    values, photometric, words = OTHERS[what]
    refused(tiff(tmp_path / "a.tif", values, photometric), words, "8 or 16 bits a sample")


def test_a_tiff_that_only_looks_like_one_or_is_too_large_or_wants_tifffile_is_said_in_a_line(tmp_path, monkeypatch):
    path = tiff(tmp_path / "a.tif", COLOURS, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 0.5)
    refused(path, "2 pixels, more than are read")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    refused(path, "pip install tifffile, or save it with 8 or 16 bits")
    path.write_bytes(b"II*\0" + b"\xff" * 40)
    monkeypatch.undo()
    refused(path, "neither Pillow nor tifffile reads it")
