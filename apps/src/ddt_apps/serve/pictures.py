"""Pictures as they come in and go out: bytes that strangers sent, read guardedly; and images as files.

Shape letters: H, W space.
"""

import base64
import binascii
import io
import re

from PIL import Image
from torch import Tensor

from ddt_apps.serve.asked import Drawn, RequestError
from ddt_tokenizer.images import to_tensor, to_uint8
from ddt_tokenizer.pictures import load_image

MAX_PIXELS = 16_000_000  # of a picture that comes in
MAX_SIDE = 1024  # of one that goes out
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def read_picture(data: bytes, image_size: int, name: str) -> Tensor:
    """Read the bytes of a picture as an image [3, H, W] in [-1, 1] of the model's size, as `Codec.encode` reads files.

    Raises:
        RequestError: If it is no picture, or has more than `MAX_PIXELS`; names it.
    """
    try:
        return to_tensor([load_image(data, image_size, name=name, max_pixels=MAX_PIXELS)])[0]
    except ValueError as error:
        raise RequestError(str(error), name) from error


def from_url(url: str, name: str) -> bytes:
    """Return the bytes of a data URL; nothing is fetched from elsewhere.

    Raises:
        RequestError: If it is another URL, or damaged.

    Example:
        >>> from_url("data:image/png;base64,iVBORw0KGgo=", "image")
        b'\\x89PNG\\r\\n\\x1a\\n'
    """
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise RequestError(
            f"{name} must be a data URL, as data:image/png;base64,...: nothing is fetched from elsewhere", name
        )
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{name} is not base64 ({error})", name) from error


def side_of(size: str, image_size: int) -> int:
    """Return the side in pixels of the square that a client asks for; "auto" is that of the model.

    Raises:
        RequestError: If it is no square, or a side is out of range.

    Example:
        >>> side_of("auto", 64), side_of("512x512", 64)
        (64, 512)
    """
    if size == "auto":
        return image_size
    found = SIZE.fullmatch(size)
    if not found or found[1] != found[2] or not 1 <= int(found[1]) <= MAX_SIDE:
        raise RequestError(
            f"size ({size[:20]!a}) must be auto ({image_size}x{image_size}) or a square of at most {MAX_SIDE} pixels a "
            "side, as 512x512",
            "size",
        )
    return int(found[1])


def as_base64(image: Tensor, side: int, drawn: Drawn) -> str:
    """Write an image [3, H, W] in [-1, 1] as the file of a picture, in base64."""
    picture, file = Image.fromarray(to_uint8(image[None])[0]), io.BytesIO()
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    quality = {} if drawn.output_format == "png" else {"quality": drawn.output_compression}
    picture.save(file, drawn.output_format, **quality)
    return base64.b64encode(file.getvalue()).decode()
