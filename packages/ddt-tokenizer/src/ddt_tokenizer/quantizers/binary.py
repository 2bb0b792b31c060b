"""Lookup-free quantization: the signs of D dimensions are the D bits of an id.

Shape letters: B batch, K tokens, D code width, V = 2 ** D.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from ddt_tokenizer.identity import identity
from ddt_tokenizer.limits import NonNegativeFloat, PositiveInt, check_settings
from ddt_tokenizer.quantizers.quantizer import ComputedCodes, Quantized, linear_fp32


@dataclass(frozen=True, kw_only=True)
class BinaryConfig:
    """Bits of an id and the weights of the loss; the codebook has 2 ** code_width entries."""

    kind: Literal["lfq"] = "lfq"
    code_width: Annotated[int, Interval(ge=1, le=62)] = 9  # D
    commitment: NonNegativeFloat = 1.0  # weight of |z - code|^2, which holds the encoder to its codes
    diversity: NonNegativeFloat = 0.0  # weight of the entropy loss
    codebook_size: PositiveInt = field(init=False)  # V

    def __post_init__(self):
        check_settings(self)
        object.__setattr__(self, "codebook_size", 2**self.code_width)

    def build(self, width: int, num_tokens: int) -> "BinaryQuantizer":
        return BinaryQuantizer(width, self)

    def identity(self) -> dict[str, Any]:
        covered = identity(self, ("kind", "codebook_size", "code_width", "commitment"))
        # These mean nothing here, but stood in the first fingerprints of this kind.
        return covered | {"decay": 0.99, "dead_share": 0.2}


class BinaryQuantizer(ComputedCodes):
    """LFQ (arXiv:2310.05737).

    Its loss is the commitment, and `diversity` times the entropy loss: sure about each vector, even over a batch. With
    independent bits a vector's entropy is the sum of its bits' entropies; the batch's is bounded by that sum, which is
    used in its place (arXiv:2406.07548), so that nothing of size V is needed.

    Example:
        >>> quantizer = BinaryQuantizer(32, BinaryConfig(code_width=4))
        >>> quantizer(torch.randn(8, 4, 32)).ids.shape
        torch.Size([8, 4])
    """

    def to_code_space(self, vectors: Tensor) -> Tensor:
        return linear_fp32(self.project, vectors)

    def _bits(self, like: Tensor) -> Tensor:
        return 2 ** torch.arange(self.config.code_width - 1, -1, -1, device=like.device)

    def lookup(self, z: Tensor) -> Tensor:
        """Read signs [..., D] as bits, the first dimension highest: int64 [...]."""
        return ((z > 0) * self._bits(z)).sum(-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Turn ids [...] into tokens [..., D], each -1 or 1."""
        return ((ids[..., None] & self._bits(ids)) != 0).float() * 2 - 1

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize vectors [B, K, width]; gradients pass straight through the signs."""
        z = self.to_code_space(vectors)
        codes = torch.where(z > 0, 1.0, -1.0)
        loss = self.config.commitment * (z - codes).square().mean()
        if self.config.diversity:
            loss = loss + self.config.diversity * (self.entropy_of_each(z) - self.entropy_of_all(z))
        return Quantized(z + (codes - z).detach(), self.lookup(z), loss)

    def entropy_of_each(self, z: Tensor) -> Tensor:
        """Compute the mean entropy in nats of softmax(2 z . code) over all codes, for z [B, K, D]."""
        return _binary_entropy((4 * z).sigmoid()).sum(-1).mean()

    def entropy_of_all(self, z: Tensor) -> Tensor:
        """Compute the entropy in nats of the mean over the batch (of this rank), bits taken as independent."""
        return _binary_entropy((4 * z).sigmoid().flatten(0, -2).mean(0)).sum()


def _binary_entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)
