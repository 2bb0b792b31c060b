"""Encoder: image patches and K learned queries through a dual-stream transformer; the queries come out.

Shape letters: B batch, K queries, D width, C channels; h, w patch grid.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddt_tokenizer.attention import DualStreamBlock


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder."""

    channels: int = 3  # of the latents
    patch_size: int = 8
    width: int = 128
    depth: int = 3
    num_heads: int = 4
    num_tokens: int = 64  # K
    mlp_ratio: float = 4.0

    def __post_init__(self):
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width ({self.width}) must be divisible by num_heads ({self.num_heads}) and by 4")


def sincos_grid(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Embed an h x w grid of patches, centred on its middle, as [h * w, channels]: half rows, half columns.

    Wavelengths run from 2 to 128 patches, so that neighbours differ and the largest usual grid is told apart.
    """
    frequencies = math.pi * 64.0 ** -torch.linspace(0, 1, channels // 4, device=device)
    halves = []
    for size in (height, width):
        angles = (torch.arange(size, device=device) - (size - 1) / 2)[:, None] * frequencies
        halves.append(torch.cat([angles.cos(), angles.sin()], dim=-1))
    rows, columns = halves
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


class Encoder(nn.Module):
    """Latents to K query vectors (DDT, arXiv:2504.14666, section 3.1).

    Args:
        config: Shape of the encoder.

    Example:
        >>> encoder = Encoder(EncoderConfig(width=32, depth=1, num_heads=2, num_tokens=4))
        >>> encoder(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 4, 32])
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.patch_in = nn.Linear(config.channels * config.patch_size**2, config.width)
        self.queries = nn.Parameter(torch.randn(config.num_tokens, config.width))
        self.blocks = nn.ModuleList(
            DualStreamBlock(config.width, config.num_heads, config.mlp_ratio, updates_image=i < config.depth - 1)
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, latents: Tensor) -> Tensor:
        """Encode latents [B, C, H, W] (H and W divisible by patch_size) into query vectors [B, K, D]."""
        p = self.config.patch_size
        h, w = latents.shape[2] // p, latents.shape[3] // p
        patches = latents.unflatten(2, (h, p)).unflatten(4, (w, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        image = self.patch_in(patches) + sincos_grid(h, w, self.config.width, latents.device)
        queries = self.queries.expand(len(latents), -1, -1)
        for block in self.blocks:
            image, queries = block(image, queries)
        return self.norm(queries)
