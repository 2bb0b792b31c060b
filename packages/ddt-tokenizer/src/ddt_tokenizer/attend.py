"""Scaled dot-product attention, by the quickest way that a device has for it.

Shape letters: B batch, H heads, S positions, D width of a head.
"""

import math
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 2**20  # scores that are written out at a time: in bf16 two megabytes, as the cache of a core has
LONGEST = 1024  # keys; beyond that scores are too many to write out


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Compute softmax(scale q k^T) v for q, k, v [B, H, S, D].

    In bf16 on a CPU the fused kernel is up to four times slower than the formula at short sequences; it is taken there
    for a part of the batch at a time, so that scores stay in the cache; compiled, for all of it, because each number of
    parts would be compiled anew.

    Args:
        visible: Bool, broadcast to [B, H, S, S]; keys where it is False are not attended to. None shows all.
        scale: By default 1 / sqrt(D).

    Example:
        >>> attend(*torch.zeros(3, 1, 2, 5, 4)).shape
        torch.Size([1, 2, 5, 4])
    """
    if not better_written_out(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    hidden = None
    if visible is not None:  # what is added to scores
        hidden = q.new_zeros(visible.shape).masked_fill_(~visible, -math.inf)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if torch.compiler.is_compiling():
        return _written_out(q, k, v, hidden)
    rows = max(1, PART // (q.shape[1] * q.shape[2] * k.shape[2]))
    masks = hidden.split(rows) if hidden is not None and len(hidden) == len(q) else repeat(hidden)
    parts = zip(q.split(rows), k.split(rows), v.split(rows), masks, strict=False)
    return torch.cat([_written_out(*part) for part in parts])


def _written_out(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    if hidden is not None:
        scores += hidden
    return scores.softmax(-1) @ v


def better_written_out(q: Tensor, k: Tensor) -> bool:
    """Whether `attend` writes out the scores of q and k [B, H, S, D]."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= LONGEST
