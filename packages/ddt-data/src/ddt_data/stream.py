"""The order of training: which samples make up batch s, as a pure function of (seed, s)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """Batches of a run of `steps` steps over as many epochs as that takes.

    Step s takes indices [s * batch_size, (s + 1) * batch_size) of the epochs' permutations put end to end, so a batch
    may reach into the next epoch, none is short, and every epoch shows every sample once. Use it as `batch_sampler` of
    a DataLoader.

    Args:
        length: Number of samples.
        batch_size: Samples in a batch, at least 1.
        steps: Steps of the whole run.
        seed: Of the permutations.
        count_epochs: Give epoch * length + index, for datasets that draw a sample anew each time it comes by.
        start: First step to give; `len()` stays `steps`, as Lightning counts batches from the run's beginning.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> whole = list(StepSampler(length=10, batch_size=4, steps=6, seed=0))
        >>> list(StepSampler(length=10, batch_size=4, steps=6, seed=0, start=4)) == whole[4:]
        True
    """

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, start: int = 0, count_epochs: bool = False):
        if min(length, batch_size) < 1:
            raise ValueError(f"length ({length}) and batch_size ({batch_size}) must be at least 1")
        if not 0 <= start <= steps:
            raise ValueError(f"start ({start}) must be from 0 to steps ({steps})")
        self.length, self.batch_size, self.steps, self.seed, self.start = length, batch_size, steps, seed, start
        self.count_epochs = count_epochs

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        drawn, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, index = divmod(position, self.length)
                if epoch != drawn:
                    drawn, order = epoch, self._permutation(epoch)
                batch.append(int(order[index]) + (epoch * self.length if self.count_epochs else 0))
            yield batch

    def _permutation(self, epoch: int) -> Tensor:
        # Seeds of neighbouring epochs must not meet: seed 0, epoch 1 is not seed 1, epoch 0.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.length, generator=generator)
