"""Pictures from files: upright, opaque, of one shape."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow's readers raise on files that are broken, cut off, huge or no pictures at all.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the file is called; others may start programs
ENCODINGS = {"png": {"compress_level": 4}, "webp": {"lossless": True}, "jpg": {"quality": 95}}
MAX_PIXELS = 100_000_000  # a picture of more is refused before it is decoded, as it may be made to fill the memory


def load_image(
    source: str | Path | bytes,
    image_size: int | tuple[int, int],
    name: str | None = None,
    background: str = "white",
) -> NDArray[np.uint8]:
    """Read a picture and give it the wanted shape.

    Turns it upright by its EXIF orientation, takes the first frame of an animation, puts transparent parts on the
    background, scales 16-bit values, converts to RGB, resizes with antialiasing so that it covers the shape, and cuts
    out the middle.

    Args:
        source: Path of a file, or its bytes.
        image_size: Side of a square in pixels, or (width, height).
        name: What errors call the picture; by default its path.
        background: Colour behind transparent parts, in words or as "#rrggbb".

    Returns:
        uint8 [height, width, 3], RGB in 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The picture cannot be read, is cut off or has more than `MAX_PIXELS`, or `image_size` is below 1.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (90, 60), "red").save(buffer, "png")
        >>> load_image(buffer.getvalue(), 32).shape, load_image(buffer.getvalue(), (48, 32)).shape
        ((32, 32, 3), (32, 48, 3))
    """
    shape = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(shape) < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1 pixel")
    image = _read(source, name or ("picture" if isinstance(source, bytes) else str(source)), background)
    return np.asarray(ImageOps.fit(image, shape, Image.Resampling.LANCZOS))


def image_shape(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Read (width, height) of a picture as it stands upright, from its header alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no readable picture.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (90, 60), "red").save(buffer, "png")
        >>> image_shape(buffer.getvalue())
        (90, 60)
    """
    try:
        with warnings.catch_warnings(action="ignore"), _open(source) as file:
            turned = file.getexif().get(0x0112, 1) >= 5  # the orientations that lay a picture on its side
            return file.size[::-1] if turned else file.size
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{name or 'picture'}: not a readable picture ({_reason(error)}); repair or remove it"
        ) from error


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
    if image_format not in ENCODINGS:
        raise ValueError(f"image_format ({image_format!r}) must be one of: {', '.join(ENCODINGS)}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg" if image_format == "jpg" else image_format, **ENCODINGS[image_format])
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
        raise ValueError(f"{name}: not a readable picture ({_reason(error)}); make the shards again") from error


def _reason(error: Exception) -> str:
    # Pillow's own words name a temporary object, or the whole path.
    return "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def _open(source: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _read(source: str | Path | bytes, name: str, background: str) -> Image.Image:
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _open(source) as file,
        ):  # what is wrong raises, or does not matter
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
                image = Image.fromarray((np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8))
            elif image.mode == "F":
                raise ValueError("its values are floating point, of unknown range")
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{name}: not a readable picture ({_reason(error)}); repair or remove it") from error
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image
