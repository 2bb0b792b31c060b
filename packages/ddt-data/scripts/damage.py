"""Damage: what compression, scaling and imperfect decoders do to a picture, in four strengths."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

LEVELS = ("none", "light", "medium", "heavy")
# JPEG quality, side after shrinking (share), noise (of 255), blur (pixels), colour shift (of 255), distortion (pixels);
# each drawn between the two.
STRENGTHS = {
    "light": ((60, 90), (0.75, 0.9), (0, 8), (0.0, 0.3), (0, 6), (0.0, 0.4)),
    "medium": ((30, 60), (0.5, 0.75), (4, 16), (0.0, 0.4), (2, 8), (0.1, 0.6)),
    "heavy": ((15, 40), (0.375, 0.5), (8, 24), (0.0, 0.4), (3, 10), (0.2, 0.8)),
}


def damage(pictures: NDArray[np.uint8], level: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Damage pictures, each anew: distorted, blurred, shrunk and enlarged, shifted in colour, noisy, then JPEG.

    Args:
        pictures: uint8 [N, H, W, 3].
        level: One of `LEVELS`.
        rng: Source of the strengths and the noise.

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        ValueError: If the level is unknown.

    Example:
        >>> damage(np.zeros((2, 64, 64, 3), np.uint8), "heavy", np.random.default_rng(0)).shape
        (2, 64, 64, 3)
    """
    if level not in LEVELS:
        raise ValueError(f"level ({level!r}) of damage must be one of: {', '.join(LEVELS)}")
    if level == "none" or not len(pictures):
        return pictures
    quality, shrink, noise, blur, shift, distortion = STRENGTHS[level]
    count, side = len(pictures), pictures.shape[1]
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    images = _distort(images, rng.uniform(*distortion, count), rng)
    images = _blur(images, rng.uniform(*blur))
    small = max(8, round(side * rng.uniform(*shrink)))
    images = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    images = F.interpolate(images, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    array = images.permute(0, 2, 3, 1).numpy()
    array = array + rng.normal(0, 1, (count, 1, 1, 3)).astype(np.float32) * rng.uniform(*shift)
    spread = rng.uniform(*noise, (count, 1, 1, 1)).astype(np.float32)
    array += rng.standard_normal(array.shape, np.float32) * spread
    array = array.clip(0, 255).astype(np.uint8)
    return np.stack([_jpeg(picture, int(q)) for picture, q in zip(array, rng.integers(*quality, count), strict=True)])


def _distort(images: Tensor, pixels: NDArray, rng: np.random.Generator) -> Tensor:
    """Bend images [N, C, H, W] smoothly by about so many pixels each, as decoders misplace parts of a thing."""
    count, _, height, width = images.shape
    bends = torch.from_numpy(rng.standard_normal((count, 2, 6, 6), np.float32))
    bends = bends * torch.as_tensor(pixels, dtype=torch.float32)[:, None, None, None] * 2 / height
    bends = F.interpolate(bends, size=(height, width), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    rows, columns = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return F.grid_sample(images, grid + bends, mode="bilinear", padding_mode="border", align_corners=False)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images [N, C, H, W] by a Gaussian of `sigma` pixels."""
    reach = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-reach.square() / (2 * max(sigma, 1e-3) ** 2))
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    padded = F.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return F.conv2d(padded, kernel[:, :, :, None], groups=images.shape[1])


def _jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))
