"""Run folders: `runs/<name>/` holds everything of one training run, and running the same command again continues it.

config.yaml    the resolved configuration
last.ckpt      what Lightning needs to continue (never needed to use the model)
metrics.csv    one row per logged step
tensorboard/   the same for TensorBoard, where a run asks for it
done.json      written last: the run is complete and is not repeated
"""

import dataclasses
import importlib.util
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddt_apps.run.atomic import writing
from ddt_apps.run.config import first_difference, load_config, save_config
from ddt_apps.run.devices import pick_device, pick_precision
from ddt_apps.run.settings import RunSettings

if TYPE_CHECKING:
    import lightning

RUNS = Path("runs")


class Run:
    """One run folder.

    Args:
        folder: Such as `runs/tokenizer`; it is made if it does not exist.
        config: The dataclass that determines the run; for `fit` a `RunSettings`.

    Raises:
        ValueError: If the folder was started with another configuration; names the first setting that differs.

    Example:
        >>> import dataclasses, tempfile
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder) / "first", Config())
        ...     run.finish()
        ...     Run(Path(folder) / "first", Config()).finished
        True
    """

    def __init__(self, folder: Path, config: Any):
        self.folder, self.config = Path(folder), config
        self.checkpoint = self.folder / "last.ckpt"
        self.metrics = self.folder / "metrics.csv"
        self._config_file, self._done_file = self.folder / "config.yaml", self.folder / "done.json"
        if self._config_file.exists():
            self._check_config()

    def start(self) -> None:
        """Write `config.yaml`, once everything that a setting can spoil has been tried."""
        if not self._config_file.exists():
            save_config(self.config, self._config_file)

    @property
    def finished(self) -> bool:
        """Whether an earlier process completed this run."""
        return self._done_file.exists()

    def finish(self) -> None:
        """Mark the run as complete; the resume checkpoint is no longer needed and goes."""
        with writing(self._done_file) as file:
            file.write_text("{}\n")
        self.checkpoint.unlink(missing_ok=True)

    def fit(
        self,
        module: "lightning.LightningModule",
        stream: "lightning.LightningDataModule",
        callbacks: "Sequence[lightning.Callback]" = (),
    ) -> None:
        """Train to `config.steps` optimizer steps, continuing from `last.ckpt` if there is one.

        Where and how it trains is read from the config, a `RunSettings`. What the module and the callbacks log goes to
        `metrics.csv`, where a value stays in the rows until it is measured again; the "loss" is shown on the progress
        line. Ctrl-C and SIGTERM end the current step and save before they take effect; a gradient that is not finite
        stops the run before it reaches the weights.

        Args:
            module: Whose randomness is a function of (seed, step), so that a continued run equals an uninterrupted one.
            stream: `config.batches` batches, which can continue in the middle of an epoch.
            callbacks: What else watches the run; what it logs must be a function of what a checkpoint holds.

        Raises:
            ValueError: If the device is not there, or a gradient is not finite.
            KeyboardInterrupt: If Ctrl-C was pressed; everything is saved.
        """
        import lightning

        from ddt_apps.run.fitting import RunRecorder, quiet_lightning
        from ddt_apps.run.nan_guard import NaNGuard

        config, device = self.config, pick_device(self.config.device)
        precision = pick_precision(config.precision, device)
        # With loss scaling gradients overflow now and then, and their step is left out.
        guards = [] if precision == "16-mixed" else [NaNGuard(self.checkpoint, self.save_checkpoint)]
        recorder = RunRecorder(self.metrics, self.save_checkpoint, config.verb, config.steps)
        logger = False
        if config.tensorboard and importlib.util.find_spec("tensorboard"):
            logger = lightning.pytorch.loggers.TensorBoardLogger(self.folder, name="tensorboard", version="")
        with quiet_lightning():
            trainer = lightning.Trainer(
                accelerator=device.type,
                devices=1,
                precision=precision,
                max_steps=config.steps,
                max_epochs=-1,
                gradient_clip_val=config.gradient_clip,
                accumulate_grad_batches=config.accumulate,
                logger=logger,
                log_every_n_steps=recorder.log_every,
                callbacks=[*guards, *callbacks, recorder],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            self.start()
            resume = self.checkpoint if self.checkpoint.exists() else None
            trainer.fit(module, stream, ckpt_path=resume, weights_only=True)
        if recorder.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        if recorder.stopped_by is not None:
            raise SystemExit(128 + recorder.stopped_by)

    def save_checkpoint(self, trainer: "lightning.Trainer") -> None:
        """Write `last.ckpt` atomically."""
        with writing(self.checkpoint) as file:
            trainer.save_checkpoint(file)

    def _check_config(self) -> None:
        remedy = f"use another name=..., or delete {self.folder} to start over"
        try:
            upgraded = self.config.upgraded if isinstance(self.config, RunSettings) else dict
            old = load_config(type(self.config), self._config_file, upgraded=upgraded)
        except ValueError as error:
            raise ValueError(
                f"{self._config_file} is of another version of this command ({error}); {remedy}"
            ) from error
        # How many processes load the data changes neither its order nor any result.
        same = {"workers": self.config.workers} if isinstance(self.config, RunSettings) else {}
        difference = first_difference(dataclasses.replace(old, **same), self.config)
        if difference:
            key, before, now = difference
            raise ValueError(f"{self.folder} was started with {key}={before}, not {now}; {remedy}")
