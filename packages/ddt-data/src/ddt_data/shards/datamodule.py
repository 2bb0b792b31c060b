"""Shards for Lightning, resumed exactly in the middle of a run. Needs the `[train]` extra."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ddt_data.shards.stream import StepSampler


@runtime_checkable
class Ordered(Protocol):
    """A dataset with an order of its own, as a `Mixture` has."""

    def order(self, batch_size: int, steps: int, seed: int, **options: Any) -> StepSampler: ...


class ShardStream(LightningDataModule):
    """Training batches in the order of `StepSampler`; the whole run is one epoch of Lightning.

    A Lightning checkpoint holds how many batches were trained on; fitting from it goes on with the next one, with the
    same or another number of workers and of ranks. Make the Trainer with `use_distributed_sampler=False`: each rank
    takes its slice of the batch here. Take the number of steps from the same `steps`, never from
    `trainer.estimated_stepping_batches`.

    Args:
        dataset: Map-style; an `Ordered` one, such as a `Mixture`, gives the order, any other is shuffled as one source.
        batch_size: Samples in a batch, of all ranks together.
        steps: Batches of the whole run.
        num_workers: Processes that load; the order does not depend on it.
        count_epochs: See `StepSampler`.

    Example:
        >>> stream = ShardStream(list(range(10)), collate_fn=list, batch_size=4, steps=6, seed=0)
        >>> len(stream.train_dataloader())
        6
    """

    def __init__(
        self,
        dataset: Dataset,
        collate_fn: Callable[[list], Any],
        batch_size: int,
        steps: int,
        seed: int,
        num_workers: int = 0,
        count_epochs: bool = False,
    ):
        super().__init__()
        self.dataset, self.collate_fn, self.num_workers = dataset, collate_fn, num_workers
        order = dataset.order if isinstance(dataset, Ordered) else partial(StepSampler, len(dataset))
        self.order = partial(order, batch_size, steps, seed, count_epochs=count_epochs)
        self.start = 0

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}
        order = self.order(start=self.start, **ranks)
        return DataLoader(self.dataset, batch_sampler=order, collate_fn=self.collate_fn, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, int]:
        # Counted when a batch is trained on, not when a worker has fetched it.
        return {"batches": self.trainer.fit_loop.epoch_loop.batch_progress.current.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["batches"]
