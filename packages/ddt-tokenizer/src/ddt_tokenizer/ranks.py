"""What the ranks of a distributed run agree on. On a single process every function returns what it was given."""

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this process is, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """Sum over ranks: the same to the bit on each."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def averaged(tensor: Tensor) -> Tensor:
    """Average over ranks; gradients pass, such that their mean over ranks is that of one process on the whole batch."""
    if num_ranks() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    return all_reduce(tensor) / num_ranks()


def gathered(tensor: Tensor) -> Tensor:
    """Concatenate tensors of equal shapes along their first dimension, in the order of ranks."""
    if num_ranks() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def from_first(tensor: Tensor) -> Tensor:
    """Replace what was drawn on each rank by what the first one drew."""
    if num_ranks() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def rows(tensor: Tensor, picks: Tensor) -> Tensor:
    """Take rows [n] of `gathered(tensor)`, tensor [N, D], without gathering it: [n, D]."""
    if num_ranks() == 1:
        return tensor[picks]
    own = picks - rank() * len(tensor)
    held = (own >= 0) & (own < len(tensor))
    taken = tensor.new_zeros(len(picks), tensor.shape[1])
    taken[held] = tensor[own[held]]
    return summed(taken)
