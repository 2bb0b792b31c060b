"""Distances of pictures: SSIM, L1; PSNR is `ddt_tokenizer.images.psnr`."""

import torch
from torch import Tensor


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Compute structural similarity (Wang et al. 2004; window 11, sigma 1.5) of each of the images in [-1, 1]: [N]."""
    if not len(images):
        return torch.zeros(0)
    from torchmetrics.functional.image import structural_similarity_index_measure  # loads transformers, too

    return structural_similarity_index_measure(images, references, data_range=2.0, reduction="none").reshape(-1)


def l1(images: Tensor, references: Tensor, where: Tensor | None = None) -> Tensor:
    """Compute the mean absolute difference of each image in percent of the range (MagicBrush's L1, times 100): [N].

    Args:
        images, references: [N, 3, H, W] in [-1, 1].
        where: Bool [N, H, W], pixels that count; None counts all. 0 where none does.
    """
    difference = (images - references).abs().mean(1) / 2 * 100
    if where is None:
        return difference.mean((1, 2))
    return (difference * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)
