"""Codebook health: usage alone hides collapse, so say how the codes are spread and how many each position uses.

Shape letters: N images, K tokens, V codebook size, D code width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookHealth:
    """Statistics of the ids of a set of images."""

    usage: float  # share of the codebook that occurs, 0..1
    perplexity: float  # of all ids together, 1..V
    codes_per_position: float  # distinct codes at one position, mean over the K positions
    bits_per_position: float  # entropy of the codes at one position, mean over the K positions
    effective_dimensions: float  # of the centred codebook, 1..D; near 1 all codes lie on a line


def codebook_health(ids: Tensor, codebook: Tensor) -> CodebookHealth:
    """Measure ids int64 [N, K] against their codebook [V, D].

    Example:
        >>> codebook_health(torch.tensor([[0, 1], [0, 2]]), torch.eye(4)).codes_per_position
        1.5
    """
    size = len(codebook)
    counts = torch.stack([torch.bincount(column, minlength=size) for column in ids.T]).double()  # [K, V]
    total = counts.sum(0)
    spectrum = torch.linalg.svdvals((codebook - codebook.mean(0)).double()).square()
    return CodebookHealth(
        usage=(total > 0).double().mean().item(),
        perplexity=_entropy(total).exp().item(),
        codes_per_position=(counts > 0).sum(1).double().mean().item(),
        bits_per_position=(_entropy(counts) / torch.log(torch.tensor(2.0))).mean().item(),
        effective_dimensions=_entropy(spectrum).exp().item(),
    )


def _entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of non-negative weights [..., n], normalised to sum to one."""
    return torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1)
