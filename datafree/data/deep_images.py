"""Images of more than 8 bits a sample to 8 bits; and of TIFF, what Pillow reads wrongly or does not open."""

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as Tiff

from ..errors import first_line

FULL = ("PNG", "PPM", "JPEG2000")  # formats of which Pillow gives whole numbers of 16 bits, whether these fill 16 or 32
HIGHEST_SAMPLE = (281, 341)  # of TIFF: tags (MaxSampleValue, SMaxSampleValue)
WHITE_IS_ZERO, UNSIGNED, SIGNED, FLOAT = 0, 1, 2, 3  # of TIFF: values of PhotometricInterpretation and SampleFormat
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how they begin, BigTIFF among them
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
    bits = min(int(_highest(tags, Tiff.BITSPERSAMPLE, 16)), _told_bits(tags) or 16)
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


def _told_bits(tags: Tiff.ImageFileDirectory_v2 | dict) -> int:
    """That the brightest sample takes, as the tags say; 0 where they do not."""
    return max(int(_highest(tags, tag, 0)) for tag in HIGHEST_SAMPLE).bit_length()


def check_pixels(image: Image.Image) -> None:
    """Raises ValueError for a TIFF that Pillow opens and, of one version or another, gives other pixels of."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if not tags:
        return
    codec, *_, how = image.tile[0]
    bits, planes = _highest(tags, Tiff.BITSPERSAMPLE, 1), tags.get(Tiff.PLANAR_CONFIGURATION, 1) == 2
    if image.mode.startswith("RGB") and 8 < _told_bits(tags) < bits:
        raise ValueError(f"its colours have {_told_bits(tags)} bits of {bits:g}, which would be dark: {REMEDY}")
    if codec == "raw" and planes and bits > 8:
        raise ValueError(f"its colours lie in planes of {bits:g} bits, not compressed: {REMEDY}")
    if codec == "libtiff" and str(how[0]).endswith(("BS", "BF")):
        raise ValueError(f"its samples are signed or floating point, big-endian and compressed: {REMEDY}")
    if bits == 8 and _highest(tags, Tiff.SAMPLEFORMAT, UNSIGNED) == SIGNED:
        raise ValueError(f"its samples are signed: {REMEDY}")


def unopened_tiff(path: str) -> Image.Image | None:
    """What Pillow does not open, in 8 bits, by tifffile: grey or colours of up to 64 bits, whole or floating-point;
    white is where ``to_8_bits`` has it, transparency ignored.

    None where the file is no TIFF. Raises ValueError for any other TIFF, and where tifffile is not installed.
    """
    with open(path, "rb") as file:
        if file.read(4) not in TIFFS:
            return None
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"it is a TIFF which Pillow does not read: pip install tifffile, or {REMEDY}") from None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            pixels, tags = page.imagelength * page.imagewidth, {tag.code: tag.value for tag in page.tags}
            few = not Image.MAX_IMAGE_PIXELS or pixels <= 2 * Image.MAX_IMAGE_PIXELS  # where Pillow draws the line
            values, axes = page.asarray() if few else None, page.axes
    except Exception as error:  # of whichever type, where it is damaged or of another kind
        raise ValueError(f"neither Pillow nor tifffile reads it ({first_line(error)}): {REMEDY}") from None
    if values is None:
        raise ValueError(f"it has {pixels:,} pixels, more than are read")
    values = np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[..., None]
    colours, samples = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION), values.shape[-1]
    if values.ndim != 3 or values.dtype.kind not in "uif" or colours not in ((0, 1) if samples < 3 else (2,)):
        raise ValueError(f"it is a TIFF of {samples} x {values.dtype}, neither grey nor red, green and blue: {REMEDY}")
    values = values.astype(np.float32) if values.dtype == np.float16 else values  # which has no 65,535
    return _levels(values[..., 0] if samples < 3 else values[..., :3], tags, [])
