"""Embedded sprites: 40 nouns drawn in three styles.

The art is one lossless WebP sheet per style, 64 px RGBA cells in the order of `NOUNS`, eight in a row. `art/NOTICE`
names the licences; `scripts/make_sprites.py` remakes the sheets from their sources.
"""

from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddt_data.scenes.nouns import COLOURS, NOUNS, STYLES

CELL = 64  # side of a sprite in the sheets, pixels
COLUMNS = 8


@lru_cache(maxsize=16)
def load_sprites(size: int) -> NDArray[np.uint8]:
    """Load all sprites at one size, with colours multiplied by alpha.

    Args:
        size: Side of a sprite in pixels, at least 1. The art is 64 px; other sizes are resampled with antialiasing.

    Returns:
        Read-only uint8 [len(STYLES), len(NOUNS), size, size, 4], RGBA in 0..255 with R, G, B <= A.

    Raises:
        ValueError: If `size` is below 1.

    Example:
        >>> load_sprites(20).shape
        (3, 40, 20, 20, 4)
    """
    if size < 1:
        raise ValueError(f"size ({size}) of a sprite must be at least 1 pixel")
    sprites = np.empty((len(STYLES), len(NOUNS), size, size, 4), np.uint8)
    for s, style in enumerate(STYLES):
        with files("ddt_data.scenes").joinpath("art", f"{style}.webp").open("rb") as file:
            sheet = Image.open(file).convert("RGBa")
        for n in range(len(NOUNS)):
            row, column = divmod(n, COLUMNS)
            cell = sheet.crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
            # Hamming has no negative lobes: edges do not ring and colours stay below alpha.
            sprites[s, n] = np.asarray(cell.resize((size, size), Image.Resampling.HAMMING))
    sprites.setflags(write=False)
    return sprites


@lru_cache(maxsize=128)
def load_tinted(colour: str, size: int) -> NDArray[np.uint8]:
    """Load all sprites at one size in one colour, in the form of `load_sprites`.

    A tint keeps the drawing's light and shade: its mean brightness becomes the named colour, darker parts go towards
    black and lighter ones towards white, so a blue cat keeps its face.

    Args:
        colour: One of `COLOURS`.
        size: Side of a sprite in pixels.

    Example:
        >>> load_tinted("blue", 20).shape
        (3, 40, 20, 20, 4)
    """
    return tint(load_sprites(size), colour)


def tint(drawn: NDArray[np.uint8], colour: str) -> NDArray[np.uint8]:
    """Tint sprites uint8 [..., size, size, 4] as `load_tinted` says; the same shape, read-only."""
    alpha = drawn[..., 3:].astype(np.float32) / 255
    luminance = (drawn[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32))[..., None] / 255  # multiplied by alpha
    shade = luminance / np.maximum(alpha, 1 / 255)
    middle = luminance.sum((-3, -2), keepdims=True) / alpha.sum((-3, -2), keepdims=True)
    middle = middle.clip(0.3, 0.8)
    rgb = np.array(COLOURS[colour], np.float32)
    dark = rgb * (0.35 + 0.65 * shade / middle)
    light = rgb + (255 - rgb) * 0.5 * (shade - middle) / (1 - middle)
    tinted = np.where(shade < middle, dark, light).clip(0, 255) * alpha
    sprites = np.concatenate([np.rint(tinted).astype(np.uint8), drawn[..., 3:]], axis=-1)
    sprites.setflags(write=False)
    return sprites


def sprite(noun: str, style: str, colour: str | None, size: int) -> NDArray[np.uint8]:
    """Take one sprite, in its natural colours or tinted.

    Args:
        noun: One of `NOUNS`.
        style: One of `STYLES`.
        colour: One of `COLOURS`, or None for the natural colours.
        size: Side in pixels.

    Returns:
        Read-only uint8 [size, size, 4], RGBA with colours multiplied by alpha.

    Example:
        >>> sprite("cat", "noto", "blue", 24).shape
        (24, 24, 4)
    """
    sprites = load_tinted(colour, size) if colour else load_sprites(size)
    return sprites[STYLES.index(style), NOUNS.index(noun)]
