# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/seeding.py
"""Randomness of a training step: a function of (seed, step), and in it of a row's place among those of all ranks.

So a resumed run continues exactly, and ranks draw together what one process draws on the whole batch.
"""

import math
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from .ranks import num_ranks, rank

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def seed_step(module: "LightningModule", batch_idx: int) -> None:
    """Seed torch for a batch of a module with a `seed`, and for which batch of an accumulated step it is."""
    batches = module.trainer.accumulate_grad_batches
    step = module.global_step * batches + batch_idx % batches
    torch.manual_seed((module.seed * 1_000_003 + step) % 2**63)


class Rows:
    """Some rows of this rank's batch, and what is drawn for each: the same on whichever rank and device it is.

    Numbers are drawn for the rows of all ranks, by the CPU's generator, and those of these rows are taken.

    Args:
        index: Which rows of the rank's batch, int64 [B] on the CPU.
        first: Place of the rank's first row among the rows of all ranks.
        total: Number of the rows of all ranks.
        device: Where what is drawn goes.

    Example:
        >>> rows = Rows.of_batch(6)
        >>> rest, (few, others) = rows.spread(0.5, groups=2)
        >>> rest.index, few.index, others.index
        (tensor([1, 3, 5]), tensor([0, 4]), tensor([2]))
        >>> few.noise(3, 8, 8).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, index: Tensor, first: int, total: int, device: torch.device | str = "cpu"):
        self.index, self.first, self.total, self.device = index, first, total, device

    @classmethod
    def of_batch(cls, count: int, device: torch.device | str = "cpu") -> Self:
        """Return the `count` rows of this rank's batch; all ranks have as many."""
        return cls(torch.arange(count), count * rank(), count * num_ranks(), device)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, tensor: Tensor) -> Tensor:
        """Return these rows of the rank's batch [all, ...]: [B, ...]."""
        return tensor if len(self) == len(tensor) else tensor[self.index.to(tensor.device)]

    def uniform(self) -> Tensor:
        """Draw from [0, 1): [B]."""
        return self._own(torch.rand(self.total))

    def normal(self) -> Tensor:
        """Draw from N(0, 1): [B]."""
        return self._own(torch.randn(self.total))

    def integers(self, low: int, high: int) -> Tensor:
        """Draw from low to high - 1: int64 [B]."""
        return self._own(torch.randint(low, high, (self.total,)))

    def noise(self, *shape: int) -> Tensor:
        """Draw from N(0, 1), each row from a seed of its own: [B, *shape]."""
        generator, drawn = torch.Generator(), torch.empty(len(self), *shape)
        for row, seed in zip(drawn, torch.randint(2**63 - 1, (self.total,))[self.index + self.first], strict=True):
            row.normal_(generator=generator.manual_seed(int(seed)))
        return drawn.to(self.device)

    def spread(self, share: float, groups: int) -> tuple[Self, list[Self]]:
        """Split off a share of the rows of all ranks, spread evenly over them, in groups that take turns.

        A group that has no row here has some on another rank; there are fewer groups where there are fewer rows.

        Returns:
            The rest, and the groups.
        """

        def chosen_before(place: int) -> int:
            return math.floor(place * share + 0.5)

        places = (self.index + self.first).tolist()
        turns = [chosen_before(p) % groups if chosen_before(p + 1) > chosen_before(p) else -1 for p in places]
        turn = torch.tensor(turns, dtype=torch.long)
        groups = min(groups, chosen_before(self.total))
        rest, *chosen = (
            type(self)(self.index[turn == group], self.first, self.total, self.device) for group in range(-1, groups)
        )
        return rest, chosen

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self.index + self.first].to(self.device)
