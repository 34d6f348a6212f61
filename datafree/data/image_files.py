"""One image file to pixels: whatever bit depth, mode and size it has, with the channels and the size that are wanted.

As torchvision's ImageFolder reads it: transparency and EXIF orientation are not applied, an animation gives its first
frame. Unlike there, more than 8 bits are scaled, not clipped.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .deep_images import check_pixels, is_deep, to_8_bits, unopened_tiff
from .specs import DamagedData, Size

Crop = Callable[[Image.Image], Image.Image]
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),  # torchvision's IMG_EXTENSIONS
    *(".jpe", ".jfif", ".gif", ".pbm", ".pnm", ".jp2", ".tga", ".avif"),
)
MARGIN = 256 / 224  # of the usual ImageNet evaluation: resized to, over cropped to
STRIPE = 100  # times longer, for its width, than what is wanted: no more of an image is resized; chosen by us
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random crops: torchvision's defaults
LOG_RATIO = torch.tensor(RATIO).log().tolist()  # in its precision


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(EXTENSIONS)


def load_pixels(path: str, channels: int, crop: Crop) -> np.ndarray:
    """uint8 (channels, H, W) of an image file, cropped; ``channels`` is 1 or 3.

    Raises DamagedData, which names the file, where it cannot be read.
    """
    with _named(path):
        levels = np.asarray(crop(read_image(path, channels)))  # (H, W) or (H, W, 3)
        return levels[np.newaxis] if channels == 1 else levels.transpose(2, 0, 1)


def size_of(path: str) -> Size:
    """Height and width, from the file's header. Raises DamagedData where it has none."""
    with _named(path), _opened(path) as image:
        return image.height, image.width


def read_image(path: str, channels: int) -> Image.Image:
    """In mode RGB or, for one channel, L. Raises whatever Pillow does where the file cannot be read."""
    with _opened(path) as image:
        check_pixels(image)
        colour = (to_8_bits(image) if is_deep(image) else image).convert("RGB")
        return colour if channels == 3 else colour.convert("L")


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        image = unopened_tiff(path)
        if image is None:
            raise
    with image:
        yield image


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever goes wrong with an image becomes DamagedData that names the file."""
    try:
        yield
    except Exception as error:  # Pillow's decoders have a dozen types for a bad file
        what = f"cannot read the image {path} ({_reason(path, error)})"
        raise DamagedData(what, "put a good copy there, or remove it") from error


def _reason(path: str, error: Exception) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link to {os.readlink(path)}, which is not there"
    if isinstance(error, UnidentifiedImageError):
        return "Pillow knows no such image format" if os.path.getsize(path) else "it is empty"
    told = getattr(error, "strerror", None) or str(error).partition(". ")[0].rstrip(".")
    return told or type(error).__name__


def quieten() -> None:
    """Keeps Pillow from warning on stderr of large images, odd palettes and EXIF data in files that it reads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def centre(image: Image.Image, size: Size) -> Image.Image:
    """As it is where it has that size; else resized to cover 256/224 of it, and the centre cropped."""
    (H, W), (w, h) = size, image.size
    if (h, w) == (H, W):
        return image
    h, w = min(h, max(1, STRIPE * w * H // W)), min(w, max(1, STRIPE * h * W // H))
    image, high, wide = _middle(image, h, w), round(H * MARGIN), round(W * MARGIN)
    covering = (high * w // h, high) if high * w >= wide * h else (wide, wide * h // w)
    return _middle(image.resize(covering, Image.Resampling.BILINEAR), H, W)


def _middle(image: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def random_crop(image: Image.Image, size: Size, generator: torch.Generator) -> Image.Image:
    """torchvision's RandomResizedCrop with its defaults, decided by that generator alone."""
    top, left, h, w = crop_box(image.height, image.width, generator)
    return image.crop((left, top, left + w, top + h)).resize(size[::-1], Image.Resampling.BILINEAR)


def crop_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width: of 8 to 100 % of the area and 3/4 to 4/3 as wide as high; else the middle."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*AREA, generator=generator).item()
        ratio = torch.empty(1).uniform_(*LOG_RATIO, generator=generator).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(torch.randint(room + 1, (1,), generator=generator)) for room in (height - h, width - w))
            return top, left, h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w
