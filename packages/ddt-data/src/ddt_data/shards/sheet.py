"""Contact sheets: many pictures in one, with their words, to see at a glance what a set holds."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddt_data.terminal import printable

GAP, LINES, LINE_HEIGHT = 4, 4, 11  # pixels; lines of words below each picture at most


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str] | None = None, side: int = 96
) -> Image.Image:
    """Arrange pictures in a grid about as wide as high.

    Args:
        pictures: uint8 [H, W, 3] each, at least one.
        captions: Words below each; cut after four lines.
        side: Of the square that each picture is fitted into, pixels. Small ones are enlarged without smoothing.

    Raises:
        ValueError: If there is no picture, or not a caption for each.

    Example:
        >>> contact_sheet([np.zeros((8, 8, 3), np.uint8)] * 5, side=32).size
        (112, 76)
    """
    if not pictures or (captions is not None and len(captions) != len(pictures)):
        raise ValueError(f"{len(pictures)} pictures with {len(captions or ())} captions make no sheet")
    columns = int(np.ceil(np.sqrt(len(pictures))))
    height = side + (LINES * LINE_HEIGHT if captions is not None else 0)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, picture in enumerate(pictures):
        left, top = GAP + number % columns * (side + GAP), GAP + number // columns * (height + GAP)
        image = Image.fromarray(picture)
        scale = side / max(image.size)
        size = [max(1, round(length * scale)) for length in image.size]
        image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
        if captions is not None:
            lines = textwrap.wrap(
                printable(" ".join(captions[number].split())), side // 5, max_lines=LINES, placeholder="..."
            )
            for place, line in enumerate(lines):
                draw.text((left, top + side + place * LINE_HEIGHT), line, "black", font)
    return sheet
