"""Pictures of images, as many rows as there are kinds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..reporting.plots import plt


def draw_images(rows: Mapping[str, Tensor], path: Path, texts: Mapping[str, Sequence[str]] | None = None) -> None:
    """A row of images a name, with a short text above each where ``texts`` has them.

    Args:
        rows: pixels in [0, 1], (n, 3, H, W) a row; rows may differ in n.
        path: of the PNG.
        texts: n of them for each row.
    """
    columns = max(len(images) for images in rows.values())
    height = 0.7 if texts is None else 1.15
    figure = plt.figure(
        figsize=(max(4.0, (0.65 if texts is None else 0.95) * columns), (height + 0.2) * len(rows)),
        layout="constrained",
    )
    for part, (name, images) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        part.suptitle(name, fontsize=9, x=0.01, ha="left")
        cells = part.subplots(1, columns, squeeze=False)[0]
        for cell in cells:
            cell.axis("off")
        for number, (cell, image) in enumerate(zip(cells, images.cpu(), strict=False)):
            cell.imshow(image.permute(1, 2, 0).float().clamp(0, 1), interpolation="nearest")
            if texts is not None:
                cell.set_title(texts[name][number], fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    shrink(path)


def shrink(path: Path) -> None:
    """Rewrites a PNG with 128 colours: a third of the bytes, which matters in a notebook that holds it."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)
