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

if TYPE_CHECKING:
    import lightning

RUNS = Path("runs")


class Run:
    """One run folder.

    Args:
        folder: Such as `runs/tokenizer`; it is made if it does not exist.
        config: The dataclass that determines the run.

    Raises:
        ValueError: The folder was started with another configuration; names the first setting that differs.

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
        data: Any,
        *,
        stage: str,
        steps: int,
        device: str = "auto",
        precision: str = "auto",
        gradient_clip: float | None = None,
        accumulate: int = 1,
        callbacks: "Sequence[lightning.Callback]" = (),
        tensorboard: bool = False,
        log_every: int = 10,
        save_every_seconds: float = 30.0,
    ) -> None:
        """Train to `steps` optimizer steps, continuing from `last.ckpt` if there is one.

        What the module and the callbacks log goes to `metrics.csv`, where a value stays in the rows until it is
        measured again; the "loss" is shown on the progress line.
        Ctrl-C and SIGTERM end the current step and save before they take effect.

        Args:
            module: Whose randomness is a function of (seed, step), so that a continued run equals an uninterrupted one.
            data: A LightningDataModule or a loader that can continue in the middle of an epoch.
            stage: The word on the progress line.
            steps: Optimizer steps of the whole run.
            device, precision: See `ddt_apps.run.devices`.
            gradient_clip: Largest gradient norm, or None; None for a module that steps its optimizers itself.
            accumulate: Batches whose gradients make one step.
            callbacks: What else watches the run; what it logs must be a function of what a checkpoint holds.
            tensorboard: Log for TensorBoard too, if it is installed.
            log_every: Steps between rows of `metrics.csv`.
            save_every_seconds: Time between two checkpoints, but at least 20 times what writing one takes; 0 writes one
                after every step.

        Raises:
            ValueError: The device is not there.
            KeyboardInterrupt: Ctrl-C was pressed; everything is saved.
        """
        import lightning

        from ddt_apps.run.fitting import RunRecorder, quiet_lightning

        chosen = pick_device(device)
        recorder = RunRecorder(self.metrics, self.save_checkpoint, stage, steps, log_every, save_every_seconds)
        logger = False
        if tensorboard and importlib.util.find_spec("tensorboard"):
            logger = lightning.pytorch.loggers.TensorBoardLogger(self.folder, name="tensorboard", version="")
        with quiet_lightning():
            trainer = lightning.Trainer(
                accelerator=chosen.type,
                devices=1,
                precision=pick_precision(precision, chosen),
                max_steps=steps,
                max_epochs=-1,
                gradient_clip_val=gradient_clip,
                accumulate_grad_batches=accumulate,
                logger=logger,
                log_every_n_steps=log_every,
                callbacks=[*callbacks, recorder],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            self.start()
            resume = self.checkpoint if self.checkpoint.exists() else None
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
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
            old = load_config(type(self.config), self._config_file)
        except ValueError as error:
            raise ValueError(
                f"{self._config_file} is of another version of this command ({error}); {remedy}"
            ) from error
        # How many processes load the data changes neither its order nor any result.
        same = {name: getattr(self.config, name) for name in ("workers",) if hasattr(self.config, name)}
        difference = first_difference(dataclasses.replace(old, **same), self.config)
        if difference:
            key, before, now = difference
            raise ValueError(f"{self.folder} was started with {key}={before}, not {now}; {remedy}")
