"""What happens between training steps: rows of metrics, progress, checkpoints, and a clean stop on Ctrl-C."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch

from ddt_apps.run.metrics import MetricsFile
from ddt_apps.run.progress import StageProgress
from ddt_apps.run.signals import Noted, handled, stop
from ddt_tokenizer.every_steps import EverySteps

LEAST_PAUSE = 20  # between two checkpoints, in times that it takes to write one: at most 5 % of a run is writing
UNWANTED_ADVICE = (
    ".*does not have many workers",  # small runs are quicker without
    ".*your dataloader is not resumable",  # the data module is: a loader is made for the step it starts at
    ".*LeafSpec.* is deprecated",  # Lightning's own use of torch
    ".*have no `val_dataloader`",  # validation is `ddt`'s own
    ".*in eval mode at the start of training",  # what is frozen is meant to be
    ".*smaller than the logging interval",  # the last step is always logged
)


class RunRecorder(EverySteps):
    """Records a training run in its folder; of several processes the first one does, with what all measured.

    The order within a step is row, then checkpoint: a checkpoint at step n implies that all rows up to n are on disk,
    and a resume drops rows after n. So `metrics.csv` of an interrupted run equals that of an uninterrupted one.

    Args:
        metrics_file: See `MetricsFile`.
        save_checkpoint: Writes what a resume needs, atomically.
        stage: The word on the progress line.
        steps: Optimizer steps of the whole run.
        noted: Has the signal that ends training: stopping in the middle of a step would save half of it.

    Attributes:
        log_every: Steps between rows of the metrics file.
        save_every_seconds: Time between two checkpoints, but at least 20 times what writing one takes; 0 writes one
            after every step.
    """

    log_every = 10
    save_every_seconds = 30.0

    def __init__(
        self,
        metrics_file: Path,
        save_checkpoint: Callable[[lightning.Trainer], None],
        stage: str,
        steps: int,
        noted: Noted,
    ):
        self.metrics_file, self.save_checkpoint = metrics_file, save_checkpoint
        self.stage, self.steps, self.noted = stage, steps, noted
        self.values: dict[str, float] = {}  # of the last row

    def state_dict(self) -> dict[str, Any]:
        # With what was measured since the last row: a continued run does not measure it again.
        return {"values": self.values | self._measured()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._trainer = trainer
        if trainer.is_global_zero:
            self.metrics = MetricsFile(self.metrics_file, trainer.global_step)
        self.progress = StageProgress(self.stage, self.steps, start=trainer.global_step).__enter__()
        self._saved, self._took = time.monotonic(), 0.0
        self.noted.listen()  # Lightning has put a handler of its own before

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due(trainer):  # gradients are gathered over several batches: no checkpoint holds half a step
            return
        step = trainer.global_step
        if step % self.log_every == 0 or step == self.steps:
            self.values |= self._measured()
            if trainer.is_global_zero:
                self.metrics.append(step, self.values)
        self.progress.update(step, **{name: self.values[name] for name in ("loss",) if name in self.values})
        started = time.monotonic()
        pause = self.save_every_seconds and max(self.save_every_seconds, LEAST_PAUSE * self._took)
        number, due = self._agree(self.noted.number or 0, started - self._saved >= pause)
        if number:
            self.noted.number, trainer.should_stop = number, True
        if due or trainer.should_stop or step == self.steps:
            self.save_checkpoint(trainer)
            self._saved = time.monotonic()
            self._took = self._saved - started

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, error: BaseException) -> None:
        # Lightning does not call `teardown` then.
        self._let_go()

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self._let_go()

    def tell(self, words: str) -> None:
        """Show words on the progress line."""
        self.progress.tell(words)

    def _agree(self, number: int, due: bool) -> tuple[int, bool]:
        """Let all processes stop by the signal that one has got, and save when the first one's clock says so.

        One that comes meanwhile is told to the others after the next step.
        """
        strategy = self._trainer.strategy
        if strategy.world_size > 1:
            said = [number, due and self._trainer.is_global_zero]
            number, due = strategy.reduce(torch.tensor(said, device=strategy.root_device), reduce_op="max").tolist()
        return number, bool(due)

    def _measured(self) -> dict[str, float]:
        """Return the newest figures, each the mean over all processes."""
        strategy, found = self._trainer.strategy, self._trainer.callback_metrics
        if strategy.world_size > 1 and found:
            values = [torch.as_tensor(value, dtype=torch.float32) for value in found.values()]
            together = torch.stack([value.to(strategy.root_device) for value in values])
            found = dict(zip(found, strategy.reduce(together, reduce_op="mean").tolist(), strict=True))
        return {name: float(value) for name, value in found.items()}

    def _let_go(self) -> None:
        if hasattr(self, "progress"):
            self.progress.__exit__(None, None, None)


class SettingsOfNow(lightning.Callback):
    """Sets the optimizers to the rates of the settings, where a checkpoint brings those of its time."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        found = module.configure_optimizers()
        named = found if isinstance(found, dict) else {"optimizer": found}
        fresh = named["optimizer"] if isinstance(named["optimizer"], list) else [named["optimizer"]]
        for optimizer, new in zip(trainer.optimizers, fresh, strict=True):
            for group, wanted in zip(optimizer.param_groups, new.param_groups, strict=True):
                group |= {name: value for name, value in wanted.items() if name != "params"}
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            scheduler.base_lrs = named["lr_scheduler"]["scheduler"].base_lrs
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate


@contextmanager
def listening(noted: Noted) -> Iterator[None]:
    """Note signals while Lightning is at work, and raise the exception of the first one after it."""
    try:
        with handled(noted):
            yield
    except SystemExit:  # a second one came; or Lightning's own, where one came before the first step
        if noted.number is None:
            raise
    if noted.number is not None:
        raise stop(noted.number)


@contextmanager
def named_workers() -> Iterator[None]:
    """Turn into a line what happened to a process that reads data."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).strip()
        if said.startswith("Caught ") and "DataLoader worker" in said:  # with a traceback of the worker
            raise ValueError(said.splitlines()[-1].partition(": ")[2]) from error
        if isinstance(error, RuntimeError) and said.startswith("DataLoader worker"):
            raise ValueError(
                "a process that reads data died, perhaps for lack of memory; run the same command again to continue, "
                "with fewer workers=... if need be"
            ) from error
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners, and its advice that does not apply here; other warnings pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in UNWANTED_ADVICE:
                warnings.filterwarnings("ignore", message=advice)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
