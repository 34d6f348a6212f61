"""Images of more than 8 bits a sample to 8 bits; and of TIFF, what Pillow reads wrongly or does not open."""

import zlib

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as Tiff

FULL = ("PNG", "PPM", "JPEG2000")  # formats of which Pillow gives whole numbers of 16 bits, whether these fill 16 or 32
HIGHEST_SAMPLE = (281, 341)  # of TIFF: tags (MaxSampleValue, SMaxSampleValue)
WHITE_IS_ZERO, UNSIGNED, SIGNED, FLOAT = 0, 1, 2, 3  # of TIFF: values of PhotometricInterpretation and SampleFormat
DEFLATE = (8, 32946)  # of TIFF: values of Compression
REMEDY = "save it with 8 or 16 bits a sample, as PNG"


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow gives its pixels with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits in 8, black being 0.

    White is 65,535 in formats whose samples fill their bits. In a TIFF it is what its tags say, rounded up to whole
    bits; where they say nothing, the least of 1 (floating point), 255, 4,095 (12 bits) and 65,535 that no pixel
    exceeds. Raises ValueError where there is none.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "I" and _highest(tags, Tiff.SAMPLEFORMAT, UNSIGNED) == UNSIGNED:
        values = values.view(np.uint32)
    return _levels(values, tags, [65535] if image.format in FULL and image.mode != "F" else [])


def _levels(values: np.ndarray, tags: Tiff.ImageFileDirectory_v2 | dict, whites: list[int]) -> Image.Image:
    low, high, floating = values.min(), values.max(), values.dtype.kind == "f"
    told = max(int(_highest(tags, tag, 0)) for tag in HIGHEST_SAMPLE).bit_length()
    bits = min(int(_highest(tags, Tiff.BITSPERSAMPLE, 16)), told or 16)
    if not whites:
        whites = [2**bits - 1, 65535] if not floating and 8 < bits < 16 else [1] * floating + [255, 4095, 65535]
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        raise ValueError(f"its pixels reach from {low:g} to {high:g}: {REMEDY}")
    values = white - values if tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO else values
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _highest(tags: Tiff.ImageFileDirectory_v2 | dict, tag: int, default: int) -> float:
    """Of a tag's values, one a sample."""
    return np.max(tags.get(tag, default))


def check_pixels(image: Image.Image) -> None:
    """Raises ValueError for a TIFF that Pillow opens and, of one version or another, gives other pixels of."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if not tags:
        return
    codec, *_, how = image.tile[0]
    bits, planes = _highest(tags, Tiff.BITSPERSAMPLE, 1), tags.get(Tiff.PLANAR_CONFIGURATION, 1) == 2
    if codec == "raw" and planes and bits > 8:
        raise ValueError(f"its colours lie in planes of {bits:g} bits, not compressed: {REMEDY}")
    if codec == "libtiff" and str(how[0]).endswith(("BS", "BF")):
        raise ValueError(f"its samples are signed or floating point, big-endian and compressed: {REMEDY}")
    if bits == 8 and _highest(tags, Tiff.SAMPLEFORMAT, UNSIGNED) == SIGNED:
        raise ValueError(f"its samples are signed: {REMEDY}")


def unopened_tiff(path: str) -> Image.Image | None:
    """What Pillow does not open, in 8 bits: grey or colours of 16 to 64 bits, whole or floating-point, in strips that
    are not compressed or by deflate; white is where ``to_8_bits`` has it, transparency ignored.

    None where the file is no TIFF. Raises ValueError for any other TIFF, with what it is.
    """
    with open(path, "rb") as file:
        try:
            head = file.read(16)
            tags = Tiff.ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])  # of BigTIFF, else of TIFF
            file.seek(tags.next)
            tags.load(file)
            H, W, samples = int(tags[Tiff.IMAGELENGTH]), int(tags[Tiff.IMAGEWIDTH]), tags.get(Tiff.SAMPLESPERPIXEL, 1)
            bits, how = _highest(tags, Tiff.BITSPERSAMPLE, 1), int(_highest(tags, Tiff.SAMPLEFORMAT, UNSIGNED))
            strips = list(zip(tags.get(Tiff.STRIPOFFSETS, ()), tags.get(Tiff.STRIPBYTECOUNTS, ()), strict=True))
        except Exception:  # of whichever type, where it is none, or damaged
            return None
        packed = tags.get(Tiff.COMPRESSION, 1)
        plain = all(tags.get(tag, 1) == 1 for tag in (Tiff.PLANAR_CONFIGURATION, Tiff.PREDICTOR, Tiff.FILLORDER))
        colours = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) in ((0, 1) if samples < 3 else (2,))
        same = np.min(tags.get(Tiff.BITSPERSAMPLE, 1)) == bits and bits in (16, 32, 64) and how in (UNSIGNED, FLOAT)
        if not (plain and colours and same and strips and packed in (1, *DEFLATE)):
            kind = ", floating point," if how == FLOAT else ""
            raise ValueError(f"it is a TIFF of {samples} x {bits:g} bits{kind} which Pillow does not read: {REMEDY}")
        if Image.MAX_IMAGE_PIXELS and H * W > 2 * Image.MAX_IMAGE_PIXELS:  # where Pillow draws the line
            raise ValueError(f"it has {H * W:,} pixels, more than are read")
        size, data = H * W * samples * int(bits) // 8, b""
        for start, count in strips:
            file.seek(start)
            strip, room = file.read(count), max(1, size - len(data))
            data += zlib.decompressobj().decompress(strip, room) if packed in DEFLATE else strip
    if len(data) < size:
        raise ValueError("it is cut short")
    order, letter = "<" if head[:2] == b"II" else ">", "f" if how == FLOAT else "u"
    values = np.frombuffer(data[:size], f"{order}{letter}{bits // 8:g}").reshape(H, W, samples)
    return _levels(values[..., 0] if samples < 3 else values[..., :3], tags, [])
