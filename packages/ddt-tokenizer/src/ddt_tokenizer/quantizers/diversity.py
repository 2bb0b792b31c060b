"""Entropy of code usage at each position: the diversity term of Selftok, in chunks.

Shape letters: B batch, K positions, V codebook size, D code width.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddt_tokenizer.ranks import averaged

SHARPNESS = 10.0  # softmax temperature of similarities is its inverse
MEMORY = 0.8  # share of the moving histogram in the distribution whose entropy counts
GROUPS = 64  # contiguous groups of positions
FULL_BELOW, NONE_ABOVE = 0.1, 0.3  # perplexity over V between which the weight falls from half to nothing


def perplexity(histogram: Tensor) -> Tensor:
    """Compute the effective number of codes of distributions [..., V].

    Example:
        >>> round(perplexity(torch.tensor([0.5, 0.5, 0.0])).item(), 4)
        2.0
    """
    return torch.special.entr(histogram).sum(-1).exp()


def diversity_loss(z: Tensor, codebook: Tensor, histogram: Tensor) -> Tensor:
    """Compute the negative entropy of code usage, per position and per group of positions (Selftok, May 2025).

    The distribution at a position is 0.8 of its moving histogram and 0.2 of the batch's mean softmax of 10 times the
    similarities, over all ranks. The term fades as positions grow diverse. At most B * K / 64 * V similarities are held
    at once: those of a group of positions, computed again on the way back.

    Args:
        z: Unit vectors [B, K, D].
        codebook: [V, D].
        histogram: Moving code distribution of each position [K, V].
    """
    share = perplexity(histogram).mean() / len(codebook)
    weight = 0.5 * ((NONE_ABOVE - share) / (NONE_ABOVE - FULL_BELOW)).clamp(0, 1)
    groups = min(GROUPS, z.shape[1])
    by_position, by_group = z.new_zeros(()), z.new_zeros(())
    if weight > 0:
        for vectors, past in zip(z.tensor_split(groups, 1), histogram.tensor_split(groups), strict=True):
            usage = averaged(checkpoint(_usage, vectors, codebook, use_reentrant=False))
            positions, group = checkpoint(_entropies, usage, past, use_reentrant=False)
            by_position, by_group = by_position + positions, by_group + group
    return -weight * (by_position / z.shape[1] + by_group / groups) / 2


def _usage(z: Tensor, codebook: Tensor) -> Tensor:
    """Average the softmax over codes over a batch [B, k, D]: [k, V]."""
    return (SHARPNESS * z @ codebook.T).softmax(-1).mean(0)


def _entropies(usage: Tensor, histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the sum of the positions' entropies, and the entropy of their mean, of one group."""
    mixed = MEMORY * histogram + (1 - MEMORY) * usage
    return torch.special.entr(mixed).sum(), torch.special.entr(mixed.mean(0)).sum()
