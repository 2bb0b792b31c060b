"""A sheet of pictures with words under each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddt_apps.run.terminal import harmless

SIDE = 256  # pixels of a cell at least; smaller pictures are enlarged smoothly
GAP, WORDS = 8, 24  # pixels between cells, and of the line of words under each
Cell = tuple[NDArray[np.uint8], str]  # a picture [H, W, 3] and what stands under it


def labelled_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Lay out rows of pictures of one size, each with a line of words under it, which is cut to its width.

    Example:
        >>> labelled_sheet([[(np.zeros((32, 32, 3), np.uint8), "fox.png"), (np.zeros((32, 32, 3), np.uint8), "")]]).size
        (536, 296)
    """
    height, width = rows[0][0][0].shape[:2]
    scale = max(1.0, SIDE / min(height, width))
    height, width = round(height * scale), round(width * scale)
    down, across = height + WORDS + GAP, width + GAP
    sheet = Image.new("RGB", (GAP + max(map(len, rows)) * across, GAP + len(rows) * down), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, cells in enumerate(rows):
        for column, (picture, words) in enumerate(cells):
            left, top = GAP + column * across, GAP + row * down
            sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC), (left, top))
            draw.text((left, top + height + 3), _fitting(words, font, width), "black", font)
    return sheet


def _fitting(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return words that fit, without their middle if they are too long."""
    shown = words = " ".join(harmless(words).split())
    kept = len(words)
    while kept and font.getlength(shown) > width:
        kept -= 1
        shown = f"{words[: (kept + 1) // 2]}...{words[len(words) - kept // 2 :]}"
    return shown
