"""Finite scalar quantization: each of a few dimensions is rounded to one of its levels; there is no codebook to learn.

Shape letters: B batch, K tokens, D code width (the number of levels), V codebook size (their product).
"""

import torch
from torch import Tensor, nn

from ddt_tokenizer.quantizer import Quantized, QuantizerConfig, linear_fp32


class FiniteScalarQuantizer(nn.Module):
    """FSQ (arXiv:2309.15505), with the interface of `VectorQuantizer`. It has no loss of its own.

    Args:
        width: Width of the incoming vectors.
        config: Of kind fsq; `levels` such as (8, 5, 5, 5).

    Example:
        >>> config = QuantizerConfig(kind="fsq", levels=(5, 4, 3), codebook_size=60, code_width=3)
        >>> quantizer = FiniteScalarQuantizer(32, config)
        >>> quantizer(torch.randn(8, 4, 32)).ids.shape
        torch.Size([8, 4])
    """

    def __init__(self, width: int, config: QuantizerConfig, num_tokens: int | None = None):
        super().__init__()
        self.config = config
        self.project = nn.Linear(width, len(config.levels))

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device)

    def to_code_space(self, vectors: Tensor) -> Tensor:
        """Squash [B, K, width] into [B, K, D], fp32, where rounding gives one of the levels, -L//2 .. (L-1)//2."""
        levels = self._levels(vectors)
        half = (levels - 1) * (1 + 1e-3) / 2  # a little beyond, so that the outermost levels can be reached
        offset = 0.5 * (levels % 2 == 0)
        return (linear_fp32(self.project, vectors) + (offset / half).atanh()).tanh() * half - offset

    def lookup(self, z: Tensor) -> Tensor:
        """Number the nearest levels of z [..., D], the first dimension counting fastest: int64 [...]."""
        levels = self._levels(z)
        steps = levels.cumprod(0) // levels
        return ((z.round().long() + levels // 2) * steps).sum(-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens [..., D] in [-1, 1] of ids [...]."""
        levels = self._levels(ids)
        places = ids[..., None] // (levels.cumprod(0) // levels) % levels
        return self.normalise((places - levels // 2).float())

    def normalise(self, codes: Tensor) -> Tensor:
        """Scale codes [..., D] to [-1, 1]."""
        return codes / (self._levels(codes) // 2)

    @property
    def codebook(self) -> Tensor:
        """All tokens [V, D]."""
        return self.embed(torch.arange(self.config.codebook_size, device=self.project.weight.device))

    def continuous(self, vectors: Tensor) -> Tensor:
        """Skip the rounding: tokens [B, K, D]."""
        return self.normalise(self.to_code_space(vectors))

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize vectors [B, K, width]; gradients pass straight through the rounding."""
        z = self.to_code_space(vectors)
        tokens = self.normalise(z + (z.round() - z).detach())
        return Quantized(tokens, self.lookup(z), z.new_zeros(()))
