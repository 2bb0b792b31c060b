"""The order of training, and its exact continuation through Lightning."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import Dataset

from ddt_data import StepSampler
from ddt_data.shards.datamodule import ShardStream

STEPS = 8


def test_every_epoch_shows_every_sample_once_and_no_batch_is_short():
    batches = list(StepSampler(length=10, batch_size=4, steps=15, seed=0))
    assert [len(batch) for batch in batches] == [4] * 15
    flat = [index for batch in batches for index in batch]
    epochs = [flat[at : at + 10] for at in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("start", range(8))
def test_a_later_start_gives_the_rest(start):
    whole = list(StepSampler(5, 3, steps=7, seed=1))
    rest = StepSampler(5, 3, steps=7, seed=1, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == 7


def test_the_order_depends_on_the_seed_alone():
    assert list(StepSampler(50, 5, 20, seed=1)) == list(StepSampler(50, 5, 20, seed=1))
    assert list(StepSampler(50, 5, 20, seed=1)) != list(StepSampler(50, 5, 20, seed=2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(StepSampler(50, 5, 20, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_may_hold_more_than_an_epoch():
    assert sorted(next(iter(StepSampler(3, 7, 1, seed=0)))) == sorted(
        [0, 1, 2] * 2 + [next(iter(StepSampler(3, 7, 1, 0)))[6]]
    )


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="length"):
        StepSampler(0, 1, 1, 0)
    with pytest.raises(ValueError, match=r"start \(9\)"):
        StepSampler(5, 1, steps=8, seed=0, start=9)


class Keys(Dataset):
    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> float:
        return float(index)


class Recorder(LightningModule):
    """A model of one weight that notes what it was fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fed: list[list[float]] = []

    def training_step(self, batch, index):
        self.fed.append(batch.tolist())
        return ((self.weight - batch) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Interrupt(Callback):
    """Stop hard in the middle of step 6 (counted from 1)."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 5:
            raise RuntimeError("killed")


def fit(folder, num_workers, callbacks, checkpoint=None):
    stream = ShardStream(Keys(), torch.tensor, batch_size=4, steps=STEPS, seed=3, num_workers=num_workers)
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, stream, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_fed_and_ends_as_an_uninterrupted_one(tmp_path, num_workers):
    whole = fit(tmp_path, num_workers, [ModelCheckpoint(tmp_path / "whole")])
    assert len(whole.fed) == STEPS

    save = ModelCheckpoint(tmp_path / "part", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, num_workers, [save, Interrupt()])
    for step in (3, 6):  # the checkpoint of step 6 comes from a run that was itself resumed
        resumed = fit(tmp_path, num_workers, [save], checkpoint=tmp_path / "part" / f"step={step}.ckpt")
        assert resumed.fed == whole.fed[step:]
        assert torch.equal(resumed.weight, whole.weight)


def test_counted_epochs_tell_the_draws_of_a_sample_apart():
    plain = [i for batch in StepSampler(length=5, batch_size=4, steps=10, seed=3) for i in batch]
    counted = [i for batch in StepSampler(length=5, batch_size=4, steps=10, seed=3, count_epochs=True) for i in batch]
    assert [i % 5 for i in counted] == plain
    assert sorted(counted) == list(range(40))
