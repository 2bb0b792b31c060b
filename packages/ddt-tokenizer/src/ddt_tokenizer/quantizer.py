"""Vector quantizer: unit vectors to the nearest entry of a codebook that follows them by moving averages.

Shape letters: B batch, K tokens, N = B * K vectors, D code width, V codebook size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class QuantizerConfig:
    """Size and update rule of the codebook."""

    codebook_size: int = 512  # V
    code_width: int = 12  # D
    decay: float = 0.99  # of the moving averages of counts and sums
    commitment: float = 1.0  # weight of |z - code|^2, which holds the encoder to its codes
    dead_share: float = 0.2  # an entry used less than this share of the uniform rate is replaced


class Quantized(NamedTuple):
    """Result of quantizing: tokens [B, K, D], ids int64 [B, K], loss scalar."""

    tokens: Tensor
    ids: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Cosine vector quantizer with an EMA codebook (arXiv:1711.00937; cosine form and width 16 as in DDT and Selftok).

    In training each call updates the codebook, which starts as k-means of the first batch. Entries that die are
    replaced by the worst-quantized vectors of the batch, not by random ones: random ones mostly land in flat regions,
    where they become twins of codes that are there already. Always computed in fp32.

    Args:
        width: Width of the incoming query vectors.
        config: Size and update rule of the codebook.

    Example:
        >>> quantizer = VectorQuantizer(32, QuantizerConfig(codebook_size=16, code_width=4))
        >>> quantizer(torch.randn(8, 4, 32)).ids.shape
        torch.Size([8, 4])
    """

    def __init__(self, width: int, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.project = nn.Linear(width, config.code_width)
        self.norm = nn.LayerNorm(config.code_width, eps=1e-6)
        self.register_buffer("codebook", F.normalize(torch.randn(config.codebook_size, config.code_width), dim=-1))
        self.register_buffer("counts", torch.zeros(config.codebook_size))  # all zero: no batch seen yet
        self.register_buffer("sums", torch.zeros(config.codebook_size, config.code_width))

    def project_to_sphere(self, vectors: Tensor) -> Tensor:
        """Project [B, K, width] to unit vectors [B, K, D], fp32."""
        with torch.autocast(vectors.device.type, enabled=False):
            return F.normalize(
                F.linear(vectors.float(), self.project.weight.float(), self.project.bias.float()), dim=-1
            )

    def lookup(self, z: Tensor) -> Tensor:
        """Find the nearest entry of unit vectors [..., D]: int64 [...]."""
        with torch.autocast(z.device.type, enabled=False):
            # 8,192 vectors at a time, so that nothing of size N x V is ever held.
            return torch.cat([(chunk @ self.codebook.T).argmax(-1) for chunk in z.flatten(0, -2).split(8192)]).view(
                z.shape[:-1]
            )

    def embed(self, ids: Tensor) -> Tensor:
        """Look ids [B, K] up and normalise them: tokens [B, K, D]."""
        return self.normalise(self.codebook[ids])

    def normalise(self, codes: Tensor) -> Tensor:
        """Apply the norm after the codebook (part of decoding in DDT and Selftok) to [..., D]."""
        with torch.autocast(codes.device.type, enabled=False):
            return F.layer_norm(
                codes, codes.shape[-1:], self.norm.weight.float(), self.norm.bias.float(), self.norm.eps
            )

    def continuous(self, vectors: Tensor) -> Tensor:
        """Skip the codebook: tokens [B, K, D] as the decoder would see them without quantization."""
        return self.normalise(self.project_to_sphere(vectors))

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize query vectors [B, K, width]; gradients pass straight through to them."""
        z = self.project_to_sphere(vectors)
        if self.training and not self.counts.any():
            self._start(z.detach().flatten(0, 1))
        ids = self.lookup(z)
        codes = self.codebook[ids]
        loss = self.config.commitment * (codes - z).square().mean()
        tokens = self.normalise(z + (codes - z).detach())
        if self.training:
            self._update(z.detach().flatten(0, 1), ids.flatten())
        return Quantized(tokens, ids, loss)

    @torch.no_grad()
    def _start(self, z: Tensor, iterations: int = 10) -> None:
        """Initialise the codebook by spherical k-means of vectors [N, D]."""
        size = self.config.codebook_size
        picks = torch.randperm(len(z), device=z.device)[:size]
        picks = torch.cat([picks, torch.randint(len(z), (size - len(picks),), device=z.device)])
        self.codebook.copy_(z[picks])
        for _ in range(iterations):
            counts, sums = self._assign(z, self.lookup(z))
            self.codebook.copy_(torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), self.codebook))
        self.counts.fill_(len(z) / size)
        self.sums.copy_(self.codebook * self.counts[:, None])

    def _assign(self, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Count the vectors [N, D] of each entry and add them up: [V] and [V, D]."""
        counts = torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(ids, dtype=self.counts.dtype))
        return counts, torch.zeros_like(self.sums).index_add_(0, ids, z)

    @torch.no_grad()
    def _update(self, z: Tensor, ids: Tensor) -> None:
        """Move the codebook towards the vectors [N, D] assigned to it, and revive dead entries."""
        similarity = (self.codebook[ids] * z).sum(-1)
        counts, sums = self._assign(z, ids)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        self.codebook.copy_(F.normalize(self.sums, dim=-1))

        uniform = len(z) / self.config.codebook_size
        dead = (self.counts < self.config.dead_share * uniform).nonzero().flatten()[: len(z)]
        worst = z[similarity.topk(len(dead), largest=False).indices]
        self.codebook[dead] = worst
        self.counts[dead] = uniform  # enough for over a hundred steps to gather vectors of its own
        self.sums[dead] = worst * self.counts[dead, None]
