"""The order of training: which samples make up batch s, as a pure function of (seed, s)."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import Sampler

TURNS = 1000  # over which the weights of a mixture are kept to the sample


class StepSampler(Sampler[list[int]]):
    """Batches of a run of `steps` steps over as many epochs as that takes.

    Step s takes indices [s * batch_size, (s + 1) * batch_size) of the epochs' permutations put end to end, so a batch
    may reach into the next epoch, none is short, and every epoch shows every sample once. Use it as `batch_sampler` of
    a DataLoader.

    A mixture of several sources gives each its share of every 1000 turns, in shuffled order; each source runs through
    epochs of its own, and each of these shows every sample of it once. Of several ranks each takes its own slice of
    the batch, so which samples a step is made of does not depend on how many ranks there are.

    Args:
        length: Number of samples; or of each source, the indices then being those of the sources put end to end.
        batch_size: Samples in a batch, of all ranks together.
        count_epochs: Give epoch * (sum of lengths) + index, for datasets that draw a sample anew each time it comes by.
        start: First step to give; `len()` stays `steps`, as Lightning counts batches from the run's beginning.
        weights: Share of each source, of any sum, kept to 0.1 %; None shuffles all sources as one.
        rank: Which slice of each batch to give.
        whole_batches: Take each batch from one source, for sources whose samples do not stack (aspect buckets).

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> whole = list(StepSampler(length=10, batch_size=4, steps=6, seed=0))
        >>> list(StepSampler(length=10, batch_size=4, steps=6, seed=0, start=4)) == whole[4:]
        True
        >>> mixed = [i for batch in StepSampler([50, 10], 10, 100, seed=0, weights=[3, 1]) for i in batch]
        >>> sum(i < 50 for i in mixed)
        750
    """

    def __init__(
        self,
        length: int | Sequence[int],
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        count_epochs: bool = False,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        whole_batches: bool = False,
    ):
        lengths = [length] if isinstance(length, int) else list(length)
        if min([*lengths, batch_size], default=0) < 1 or not lengths:
            raise ValueError(f"length ({length}) and batch_size ({batch_size}) must be at least 1")
        if not 0 <= start <= steps:
            raise ValueError(f"start ({start}) must be from 0 to steps ({steps})")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be divisible by the number of ranks ({world_size}), rank {rank} be one"
            )
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, start
        self.count_epochs, self.rank, self.world_size = count_epochs, rank, world_size
        self.total = sum(lengths)
        self.lengths = [self.total] if weights is None else lengths
        self._firsts = [0, *accumulate(self.lengths)]
        self._quotas = _quotas([1.0] if weights is None else weights, len(self.lengths))
        self._turn = batch_size if whole_batches else 1  # samples that one turn of a source gives
        self._orders: dict[int, tuple[int, Tensor]] = {}
        self._drawn: tuple[int, list[int], list[int]] = (-1, [], [])  # which thousand turns, whose, had before

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for step in range(self.start, self.steps):
            first = step * self.batch_size + self.rank * share
            yield [self._sample(position) for position in range(first, first + share)]

    def _sample(self, position: int) -> int:
        """Return the sample at a position of the endless stream."""
        turn, within = divmod(position, self._turn)
        source, taken = self._source(turn)
        epoch, index = divmod(taken * self._turn + within, self.lengths[source])
        return (
            self._firsts[source] + self._order(source, epoch, index) + (epoch * self.total if self.count_epochs else 0)
        )

    def _source(self, turn: int) -> tuple[int, int]:
        """Return whose turn it is, and how many that source had before."""
        if len(self.lengths) == 1:
            return 0, turn
        number, place = divmod(turn, TURNS)
        if number != self._drawn[0]:
            sources = [source for source, quota in enumerate(self._quotas) for _ in range(quota)]
            order = torch.randperm(TURNS, generator=_generator(self.seed, number, "turns")).tolist()
            drawn, had = [sources[i] for i in order], [number * quota for quota in self._quotas]
            before = []
            for source in drawn:
                before.append(had[source])
                had[source] += 1
            self._drawn = (number, drawn, before)
        return self._drawn[1][place], self._drawn[2][place]

    def _order(self, source: int, epoch: int, index: int) -> int:
        drawn, order = self._orders.get(source, (-1, None))
        if drawn != epoch:
            generator = _generator(self.seed, epoch, f"source {source}" if source else "")
            order = torch.randperm(self.lengths[source], generator=generator)
            self._orders[source] = (epoch, order)
        return int(order[index])


def _generator(seed: int, number: int, what: str = "") -> torch.Generator:
    # Seeds of neighbouring epochs must not meet: seed 0, epoch 1 is not seed 1, epoch 0. Nor those of two sources.
    return torch.Generator().manual_seed((seed * 1_000_003 + number + (crc32(what.encode()) << 31)) % 2**63)


def _quotas(weights: Sequence[float], sources: int) -> list[int]:
    """Return how many of `TURNS` turns each source has."""
    fits = len(weights) == sources and min(weights) > 0
    ends = [round(TURNS * end / sum(weights)) for end in accumulate(weights)] if fits else []
    quotas = [end - start for start, end in pairwise([0, *ends])]
    if not fits or min(quotas) < 1:
        raise ValueError(
            f"weights ({list(weights)}) must be one number above 0 for each of {sources} sources, and not below "
            f"1/{TURNS} of their sum"
        )
    return quotas
