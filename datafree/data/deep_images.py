"""Images of more than 8 bits a sample to 8 bits; and of TIFF, what Pillow reads wrongly or does not read."""

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as Tiff

FULL = ("PNG", "PPM", "JPEG2000")  # formats of which Pillow gives whole numbers of 16 bits, whether these fill 16 or 32
HIGHEST_SAMPLE = (281, 341)  # of TIFF: tags (MaxSampleValue, SMaxSampleValue)
WHITE_IS_ZERO, UNSIGNED, SIGNED, FLOAT = 0, 1, 2, 3  # of TIFF: values of PhotometricInterpretation and SampleFormat
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
    low, high = values.min(), values.max()
    told = max(int(_highest(tags, tag, 0)) for tag in HIGHEST_SAMPLE).bit_length()
    bits = min(int(_highest(tags, Tiff.BITSPERSAMPLE, 16)), told or 16)
    if image.format in FULL and image.mode != "F":
        whites = [65535]
    elif image.mode != "F" and 8 < bits < 16:
        whites = [2**bits - 1, 65535]
    else:
        whites = [1] * (image.mode == "F") + [255, 4095, 65535]
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


def unread_tiff(path: str) -> str:
    """What a TIFF is that Pillow does not open; empty for any other file."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            tags = Tiff.ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])  # of BigTIFF, else of TIFF
            file.seek(tags.next)
            tags.load(file)
            bits, samples = _highest(tags, Tiff.BITSPERSAMPLE, 1), tags.get(Tiff.SAMPLESPERPIXEL, 1)
            kind = ", floating point," if _highest(tags, Tiff.SAMPLEFORMAT, UNSIGNED) == FLOAT else ""
    except Exception:  # of whichever type, where it is none, or damaged
        return ""
    return f"it is a TIFF of {samples} x {bits:g} bits{kind} which Pillow does not read: {REMEDY}"
