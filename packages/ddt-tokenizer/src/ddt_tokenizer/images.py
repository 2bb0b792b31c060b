"""Pictures as users have them -> image tensors."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(source: str | Path | bytes | Image.Image, image_size: int, name: str | None = None) -> Tensor:
    """Read a picture as float32 [3, image_size, image_size] in [-1, 1].

    EXIF orientation is applied, 16-bit grey is scaled, transparency is put on white, the shorter side is resized with
    antialiasing and the centre is cropped.

    Args:
        source: A file, its contents, or an open picture.
        image_size: Side in pixels.
        name: What errors call it; by default the path.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not a picture, or a damaged one; names the file.

    Example:
        >>> load_image(Image.new("RGB", (90, 60), "white"), 32).shape
        torch.Size([3, 32, 32])
    """
    if isinstance(source, Image.Image):
        return _to_tensor(source, image_size)
    name = name or ("in memory" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return _to_tensor(file, image_size)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture '{name}' does not exist") from None
    except UNREADABLE as error:
        raise ValueError(f"picture '{name}' cannot be read ({error}); remove it or save it again") from None


def _to_tensor(picture: Image.Image, image_size: int) -> Tensor:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip 16 bits instead of scaling them
        picture = Image.fromarray((np.asarray(picture, np.float32) / 257).clip(0, 255).astype(np.uint8))
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def as_images(images: Any, image_size: int, multiple: int = 1) -> Tensor:
    """Turn a tensor [B, 3, H, W] in [-1, 1], a PIL image, a path, or a list of those two into a batch tensor.

    Pictures become squares of image_size; tensors keep their size.

    Raises:
        ValueError: If a tensor has another shape than [B, 3, H, W] with H and W divisible by `multiple`, or holds whole
            numbers; if a list is empty.

    Example:
        >>> as_images([Image.new("RGB", (9, 9))] * 2, 8).shape
        torch.Size([2, 3, 8, 8])
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % multiple or images.shape[3] % multiple:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this tokenizer takes [B, 3, H, W] with H and W divisible by "
                f"{multiple} (it was made for {image_size}); resize them, or pass PIL images or paths"
            )
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; this tokenizer takes floats in [-1, 1]: images / 127.5 - 1")
        return images
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    if not len(images):
        raise ValueError("images is an empty list; give at least one picture")
    return torch.stack([load_image(image, image_size) for image in images])


def to_tensor(pictures: Sequence[Any]) -> Tensor:
    """Stack uint8 pictures [H, W, 3] into float32 [N, 3, H, W] in [-1, 1].

    Example:
        >>> to_tensor([np.zeros((2, 2, 3), np.uint8)]).unique().tolist()
        [-1.0]
    """
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Turn images [N, 3, H, W] in [-1, 1] into pictures, uint8 [N, H, W, 3].

    Example:
        >>> to_uint8(torch.ones(1, 3, 2, 2)).max()
        np.uint8(255)
    """
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def tile(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Lay images [n, 3, H, W] in [-1, 1] out in rows: a picture, uint8 [rows * H, columns * W, 3].

    Example:
        >>> tile(torch.zeros(6, 3, 8, 8), columns=3).shape
        (16, 24, 3)
    """
    height, width = images.shape[2:]
    rows = to_uint8(images).reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, 3)
