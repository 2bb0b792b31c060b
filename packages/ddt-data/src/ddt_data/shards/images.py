"""Pictures of shards: what they are stored as, and back, and as files; `pictures.py` reads those of people."""

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddt_data.shards.pictures import open_image, read_image

ENCODINGS = {"png": {"compress_level": 4}, "webp": {"lossless": True}, "jpg": {"quality": 95}}
FILES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # endings, and Pillow's names of the formats


def encode_image(image: NDArray[np.uint8], image_format: str = "png") -> bytes:
    """Write a picture into bytes.

    Args:
        image: uint8 [H, W, 3], RGB.
        image_format: "png" or "webp" (both lossless), or "jpg" (quality 95).

    Raises:
        ValueError: If the format is none of these.

    Example:
        >>> encode_image(np.zeros((8, 8, 3), np.uint8))[1:4]
        b'PNG'
    """
    if image_format not in ENCODINGS:
        raise ValueError(f"image_format ({image_format!r}) must be one of: {', '.join(ENCODINGS)}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg" if image_format == "jpg" else image_format, **ENCODINGS[image_format])
    return buffer.getvalue()


def decode_image(data: bytes, name: str, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Read a picture from bytes, in the size that it has: uint8 [H, W, 3].

    Args:
        max_pixels: That it may have; a picture of more is refused before it is decoded.

    Raises:
        ValueError: If the bytes are no readable picture; the message calls them `name`.

    Example:
        >>> decode_image(encode_image(np.zeros((8, 6, 3), np.uint8)), "black").shape
        (8, 6, 3)
    """
    with open_image(data, name, "make the shards again", max_pixels) as file:
        return np.asarray(read_image(file))


def file_format(path: str | Path) -> str:
    """Return Pillow's name of the format that the ending of a file speaks of.

    Raises:
        ValueError: If pictures are not written in it.

    Example:
        >>> file_format("sheet.JPG")
        'JPEG'
    """
    if (ending := Path(path).suffix.lower()) not in FILES:
        raise ValueError(f"picture '{path}' must end in {', '.join(FILES)}")
    return FILES[ending]


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture into a file, in the format of its ending; the file appears whole, and its folder is made.

    Raises:
        ValueError: If pictures are not written in that format.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "sheets", "red.webp")
        >>> save_image(Image.new("RGB", (8, 8), "red"), path)
        >>> path.read_bytes()[8:12]
        b'WEBP'
    """
    path, image_format = Path(path), file_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        image.save(part, image_format)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
