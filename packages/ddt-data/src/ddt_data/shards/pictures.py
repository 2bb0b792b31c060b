"""Pictures as people have them -> uint8 arrays: upright, opaque, of one shape; what is not safe to read is refused."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .colours import to_srgb

# What Pillow's readers raise on files that are broken, cut off, huge or no pictures at all, ...
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# ... and on what cameras and editors put beside the picture: numbers for words, words for numbers, profiles of nothing.
UNREADABLE += (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
UNREADABLE += (ImageCms.PyCMSError,)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the file is called; others may start programs
MAX_PIXELS = 100_000_000  # a picture of more is refused before it is decoded, as it may be made to fill the memory
ORIENTATION = 0x0112  # the EXIF entry that says how the camera was held, 1 to 8, and what turns the picture upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: str | Path | bytes | Image.Image,
    image_size: int | tuple[int, int],
    name: str | None = None,
    background: str = "white",
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Read a picture and give it the wanted shape.

    Reads it as `read_image` does, resizes with antialiasing so that it covers the shape, and cuts out the middle.

    Args:
        source: Path of a file, its bytes, or a picture that Pillow has opened, which stays as it is.
        image_size: Side of a square in pixels, or (width, height).
        name: What errors call the picture; by default its path.
        background: Colour behind transparent parts, in words or as "#rrggbb".
        max_pixels: That the picture may have, where that is known; at most `MAX_PIXELS`.

    Returns:
        uint8 [height, width, 3], RGB in 0..255.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the picture cannot be read, is cut off, has too many pixels or values of unknown range,
            or `image_size` is below 1.

    Example:
        >>> picture = Image.new("RGB", (90, 60), "red")
        >>> load_image(picture, 32).shape, load_image(picture, (48, 32)).shape
        ((32, 32, 3), (32, 48, 3))
    """
    shape = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(shape) < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1 pixel")
    with open_image(source, name, max_pixels=max_pixels) as file:
        image = read_image(file, background)
    return np.asarray(ImageOps.fit(image, shape, Image.Resampling.LANCZOS))


def read_image(file: Image.Image, background: str = "white") -> Image.Image:
    """Decode an opened picture as it is meant to be seen, in mode RGB.

    Turns it upright by its EXIF orientation, takes the first frame of an animation, converts it to 8 bits of sRGB, by
    its profile if it has one, and puts transparent parts on the background.

    Args:
        background: Colour behind transparent parts, in words or as "#rrggbb".

    Raises:
        ValueError: If its values are of unknown range.

    Example:
        >>> read_image(Image.new("LA", (2, 2))).getpixel((0, 0))
        (255, 255, 255)
    """
    image = to_srgb(file)
    if (turn := _turn(file)) is not None:
        image = image.transpose(turn)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image


def _turn(file: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture upright; None too where the EXIF data is not to be made out."""
    try:
        return TURNS.get(file.getexif().get(ORIENTATION))
    except UNREADABLE:
        return None


def image_shape(source: str | Path | bytes | Image.Image, name: str | None = None) -> tuple[int, int]:
    """Read (width, height) of a picture as it stands upright, from its header alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no readable picture, or has more than `MAX_PIXELS`.

    Example:
        >>> image_shape(Image.new("RGB", (90, 60), "red"))
        (90, 60)
    """
    with open_image(source, name) as file:
        lies = _turn(file) in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
        return file.size[::-1] if lies else file.size


@contextmanager
def open_image(
    source: str | Path | bytes | Image.Image,
    name: str | None = None,
    remedy: str = "repair or remove it",
    max_pixels: int | None = None,
) -> Iterator[Image.Image]:
    """Open a picture of one of `FORMATS`; what fails inside of the block counts as a fault of the picture.

    Args:
        source: Path of a file, its bytes, or a picture that Pillow has opened.
        name: What errors call the picture; by default its path.
        remedy: What errors advise.
        max_pixels: That it may have, where that is known; at most `MAX_PIXELS`.

    Yields:
        The picture as Pillow opens it: not decoded yet, not turned upright.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or has more pixels.

    Example:
        >>> with open_image(Image.new("L", (90, 60))) as file:
        ...     file.mode
        'L'
    """
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else _open(source)
        with opened as file:
            if file.width * file.height > (most := min(max_pixels or MAX_PIXELS, MAX_PIXELS)):
                raise ValueError(f"{file.width} x {file.height} pixels are more than {most}")
            yield file
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        # Pillow's own words name a temporary object, those of the system the whole path, as the machine speaks.
        if isinstance(error, UnidentifiedImageError):
            why = "of no known format"
        else:
            why = "it cannot be opened" if isinstance(error, OSError) and error.errno else error
        name = name or (str(source) if isinstance(source, str | Path) else "picture")
        raise ValueError(f"{name}: not a readable picture ({why}); {remedy}") from error


def _open(source: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
