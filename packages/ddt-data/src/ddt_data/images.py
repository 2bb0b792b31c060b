"""Pictures from files: upright, opaque, square."""

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# What Pillow's readers raise on files that are broken, cut off, huge or no pictures at all.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(source: str | Path | bytes, image_size: int, name: str | None = None) -> NDArray[np.uint8]:
    """Read a picture and make it a square of the wanted side.

    Turns it upright by its EXIF orientation, puts transparent parts on white, converts to RGB, resizes the shorter side
    with antialiasing and cuts out the middle.

    Args:
        source: Path of a file, or its bytes.
        image_size: Side in pixels, at least 1.
        name: What errors call the picture; by default its path.

    Returns:
        uint8 [image_size, image_size, 3], RGB in 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The picture cannot be read, or `image_size` is below 1.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (90, 60), "red").save(buffer, "png")
        >>> load_image(buffer.getvalue(), 32).shape
        (32, 32, 3)
    """
    if image_size < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1 pixel")
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):  # 16-bit grey: Pillow would clip instead of scale
                image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{name}: not a readable picture ({error}); repair or remove it") from error
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS))


def encode_image(image: NDArray[np.uint8], image_format: str = "png") -> bytes:
    """Write a picture into bytes.

    Args:
        image: uint8 [H, W, 3], RGB.
        image_format: "png" or "webp" (both lossless), or "jpg" (quality 95).

    Raises:
        ValueError: The format is none of these.

    Example:
        >>> encode_image(np.zeros((8, 8, 3), np.uint8))[1:4]
        b'PNG'
    """
    options = {"png": {"compress_level": 4}, "webp": {"lossless": True}, "jpg": {"quality": 95}}
    if image_format not in options:
        raise ValueError(f"image_format ({image_format!r}) must be one of: {', '.join(options)}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg" if image_format == "jpg" else image_format, **options[image_format])
    return buffer.getvalue()


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Read a picture from bytes as it is, in RGB.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: The bytes are no readable picture; the message calls them `name`.

    Example:
        >>> decode_image(encode_image(np.zeros((8, 6, 3), np.uint8)), "black").shape
        (8, 6, 3)
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(file.convert("RGB"))
    except UNREADABLE as error:
        raise ValueError(f"{name}: not a readable picture ({error}); make the shards again") from error
