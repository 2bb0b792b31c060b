"""What a quantizer is: vectors to ids, and ids to the vectors that a decoder reads.

Shape letters: B batch, K tokens, D code width, V codebook size.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Result of quantizing: tokens [B, K, D], ids int64 [B, K], loss scalar."""

    tokens: Tensor
    ids: Tensor
    loss: Tensor


class QuantizerSettings(Protocol):
    """The config of one kind, a frozen dataclass; sizes that follow from other settings are fields without `init`."""

    kind: str  # a Literal of one word, by which YAML and config.json tell the kinds apart
    codebook_size: int  # V
    code_width: int  # D

    def build(self, width: int, num_tokens: int) -> "Quantizer":
        """Make the quantizer of K tokens for vectors of a width."""

    def identity(self) -> dict[str, Any]:
        """Return what a fingerprint covers, which never changes for settings that were there before."""


@runtime_checkable
class Quantizer(Protocol):
    """What a tokenizer asks of its quantizer, which is also an `nn.Module`."""

    config: QuantizerSettings
    project: nn.Module  # width -> D, the part that belongs to the encoder
    norm: nn.Module  # what is learned after the codebook; Identity if nothing is
    revived: int  # entries replaced since this process began
    memories: Collection[str]  # names of buffers that training keeps and ids do not depend on

    @property
    def codebook(self) -> Tensor:
        """Return all codes [V, D]."""

    def to_code_space(self, vectors: Tensor) -> Tensor:
        """Turn vectors [B, K, width] into [B, K, D], fp32, of which `lookup` finds the codes."""

    def lookup(self, z: Tensor) -> Tensor:
        """Find the ids int64 [...] of z [..., D]."""

    def embed(self, ids: Tensor) -> Tensor:
        """Turn ids [...] into tokens [..., D]."""

    def normalise(self, codes: Tensor) -> Tensor:
        """Turn codes [..., D] into tokens [..., D]."""

    def continuous(self, vectors: Tensor) -> Tensor:
        """Turn vectors [B, K, width] into tokens [B, K, D] as they would be without quantization."""

    def prior(self, vectors: Tensor) -> Tensor:
        """Compute what training adds to the loss of vectors [B, K, width], quantized or not: a scalar."""

    def __call__(self, vectors: Tensor) -> Quantized:
        """Quantize vectors [B, K, width] with gradients; in training mode a codebook follows them."""


class ComputedCodes(nn.Module):
    """A quantizer whose codes are computed from their ids: nothing follows the vectors, and no entry dies."""

    revived, memories = 0, ()

    def __init__(self, width: int, config: QuantizerSettings):
        super().__init__()
        self.config = config
        self.project = nn.Linear(width, config.code_width)
        self.norm = nn.Identity()

    @property
    def codebook(self) -> Tensor:
        return self.embed(torch.arange(self.config.codebook_size, device=self.project.weight.device))

    def normalise(self, codes: Tensor) -> Tensor:
        return codes  # a kind may scale them

    def continuous(self, vectors: Tensor) -> Tensor:
        return self.normalise(self.to_code_space(vectors))

    def prior(self, vectors: Tensor) -> Tensor:
        return vectors.new_zeros(())


def linear_fp32(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in fp32, whatever autocast and the weights' dtype say: ids must not depend on precision."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
