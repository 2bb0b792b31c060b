# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/patches.py
"""Square patches of images or latents, row by row.

Shape letters: B batch, C channels, p side of a patch; H, W space, h, w patch grid.
"""

from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    """Cut [B, C, H, W] into patches [B, h * w, C * p * p], channels first.

    Example:
        >>> import torch
        >>> x = torch.arange(48.0).view(1, 3, 4, 4)
        >>> torch.equal(from_patches(to_patches(x, 2), (2, 2), 2), x)
        True
    """
    return x.unflatten(2, (-1, size)).unflatten(4, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Undo `to_patches` for a grid of h x w patches."""
    pieces = patches.unflatten(1, grid).unflatten(3, (-1, size, size))
    return pieces.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
