"""Images: float32 [B, 3, H, W] in [-1, 1], from pictures (uint8 arrays, PIL images, files) and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddt_tokenizer.pictures import load_image


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
    return to_tensor([load_image(image, image_size) for image in images])


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


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB of each of the images [N, 3, H, W] in [-1, 1]: [N].

    Example:
        >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2))
        tensor([20.])
    """
    error = ((images - references) / 2).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return -10 * error.log10()
