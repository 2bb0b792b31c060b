# Copied from packages/ddt-data/src/ddt_data/shards/pictures.py
"""Pictures as people have them -> uint8 arrays: upright, opaque, of one shape; what is not safe to read is refused."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow's readers raise on files that are broken, cut off, huge or no pictures at all.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the file is called; others may start programs
MAX_PIXELS = 100_000_000  # a picture of more is refused before it is decoded, as it may be made to fill the memory


def load_image(
    source: str | Path | bytes | Image.Image,
    image_size: int | tuple[int, int],
    name: str | None = None,
    background: str = "white",
) -> NDArray[np.uint8]:
    """Read a picture and give it the wanted shape.

    Turns it upright by its EXIF orientation, takes the first frame of an animation, puts transparent parts on the
    background, scales 16-bit values, converts to RGB, resizes with antialiasing so that it covers the shape, and cuts
    out the middle.

    Args:
        source: Path of a file, its bytes, or a picture that Pillow has opened, which stays as it is.
        image_size: Side of a square in pixels, or (width, height).
        name: What errors call the picture; by default its path.
        background: Colour behind transparent parts, in words or as "#rrggbb".

    Returns:
        uint8 [height, width, 3], RGB in 0..255.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the picture cannot be read, is cut off, has more than `MAX_PIXELS` or values of unknown range,
            or `image_size` is below 1.

    Example:
        >>> picture = Image.new("RGB", (90, 60), "red")
        >>> load_image(picture, 32).shape, load_image(picture, (48, 32)).shape
        ((32, 32, 3), (32, 48, 3))
    """
    shape = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(shape) < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1 pixel")
    with open_image(source, name) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
            image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its values are floating point, of unknown range")
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return np.asarray(ImageOps.fit(image, shape, Image.Resampling.LANCZOS))


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
        turned = file.getexif().get(0x0112, 1) >= 5  # the orientations that lay a picture on its side
        return file.size[::-1] if turned else file.size


@contextmanager
def open_image(
    source: str | Path | bytes | Image.Image, name: str | None = None, remedy: str = "repair or remove it"
) -> Iterator[Image.Image]:
    """Open a picture of one of `FORMATS`; what fails inside of the block counts as a fault of the picture.

    Args:
        source: Path of a file, its bytes, or a picture that Pillow has opened.
        name: What errors call the picture; by default its path.
        remedy: What errors advise.

    Yields:
        The picture as Pillow opens it: not decoded yet, not turned upright.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or has more than `MAX_PIXELS`.

    Example:
        >>> with open_image(Image.new("L", (90, 60))) as file:
        ...     file.mode
        'L'
    """
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else _open(source)
        with opened as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")
            yield file
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        # Pillow's own words name a temporary object, or the whole path.
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        name = name or (str(source) if isinstance(source, str | Path) else "picture")
        raise ValueError(f"{name}: not a readable picture ({why}); {remedy}") from error


def _open(source: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
