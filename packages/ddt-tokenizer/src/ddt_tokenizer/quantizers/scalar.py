"""Finite scalar quantization: each of a few dimensions is rounded to one of its levels; there is no codebook to learn.

Shape letters: B batch, K tokens, D code width (the number of levels), V codebook size (their product).
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Lt
from torch import Tensor

from ddt_tokenizer.limits import PositiveInt, check_settings
from ddt_tokenizer.quantizers.quantizer import ComputedCodes, Quantized, linear_fp32


@dataclass(frozen=True, kw_only=True)
class ScalarConfig:
    """Levels of each dimension, such as (8, 5, 5, 5); the sizes follow from them."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[PositiveInt, ...] = ()
    codebook_size: Annotated[int, Lt(2**63)] = field(init=False)  # V, the product of the levels
    code_width: PositiveInt = field(init=False)  # D, their number

    def __post_init__(self):
        check_settings(self)
        object.__setattr__(self, "levels", tuple(self.levels))  # JSON has lists
        object.__setattr__(self, "codebook_size", math.prod(self.levels))
        object.__setattr__(self, "code_width", len(self.levels))
        if not self.levels or min(self.levels) < 3:
            raise ValueError(
                f"levels {self.levels} must be numbers of at least 3, as in (8, 5, 5, 5); use kind=lfq for binary codes"
            )
        check_settings(self)  # once more: with the sizes

    def build(self, width: int, num_tokens: int) -> "ScalarQuantizer":
        return ScalarQuantizer(width, self)

    def identity(self) -> dict[str, Any]:
        # The last three mean nothing here, but stood in the first fingerprints of this kind.
        return asdict(self) | {"decay": 0.99, "commitment": 1.0, "dead_share": 0.2}


class ScalarQuantizer(ComputedCodes):
    """FSQ (arXiv:2309.15505). It has no loss of its own.

    Example:
        >>> quantizer = ScalarQuantizer(32, ScalarConfig(levels=(5, 4, 3)))
        >>> quantizer(torch.randn(8, 4, 32)).ids.shape
        torch.Size([8, 4])
    """

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device)

    def _steps(self, like: Tensor) -> Tensor:
        """What one level of each dimension adds to an id; computed here, as ONNX has no cumulative product."""
        levels = self.config.levels
        return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=like.device)

    def to_code_space(self, vectors: Tensor) -> Tensor:
        """Squash [B, K, width] into [B, K, D], fp32, where rounding gives one of the levels, -L//2 .. (L-1)//2."""
        levels = self._levels(vectors)
        half = (levels - 1) * (1 + 1e-3) / 2  # a little beyond, so that the outermost levels can be reached
        offset = 0.5 * (levels % 2 == 0)
        return (linear_fp32(self.project, vectors) + (offset / half).atanh()).tanh() * half - offset

    def lookup(self, z: Tensor) -> Tensor:
        """Compute the ids int64 [...] of the levels nearest to z [..., D]; the first dimension counts fastest."""
        levels = self._levels(z)
        return ((z.round().long() + levels // 2) * self._steps(z)).sum(-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Turn ids [...] into tokens [..., D] in [-1, 1]."""
        levels = self._levels(ids)
        places = ids[..., None] // self._steps(ids) % levels
        return self.normalise((places - levels // 2).float())

    def normalise(self, codes: Tensor) -> Tensor:
        """Scale codes [..., D] to [-1, 1]."""
        return codes / (self._levels(codes) // 2)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize vectors [B, K, width]; gradients pass straight through the rounding."""
        z = self.to_code_space(vectors)
        tokens = self.normalise(z + (z.round() - z).detach())
        return Quantized(tokens, self.lookup(z), z.new_zeros(()))
