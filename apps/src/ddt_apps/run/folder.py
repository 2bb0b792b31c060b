"""Run folders: `runs/<name>/` holds everything of one training run, and running the same command again continues it.

config.yaml    the resolved configuration, as it is now
origin.json    what the run was begun with, and what was changed since
last.ckpt      what Lightning needs to continue (never needed to use the model)
before.ckpt    the one before, of a run that the guard against NaN stopped
.shards-N/     what these two lead to where processes share a model (`sharded_checkpoint.py`)
metrics.csv    one row per logged step
tensorboard/   the same for TensorBoard, where a run asks for it;  loggers.json  by what other loggers know the run
done.json      written last: the run is complete and is not repeated
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ddt_apps.run.atomic import writing
from ddt_apps.run.config import differences, load_config, save_config
from ddt_apps.run.devices import pick_compile, pick_device, pick_precision
from ddt_apps.run.origin import Origin, Source
from ddt_apps.run.ranks import num_ranks, rank, wait_for_all
from ddt_apps.run.settings import RunSettings
from ddt_apps.run.sharded_checkpoint import remove_shards, save_sharded
from ddt_apps.run.signals import Noted
from ddt_apps.run.telling import tell_start

if TYPE_CHECKING:
    import lightning
    import torch


class Savable(Protocol):
    """A model that can be exported."""

    def save_pretrained(self, folder: Path) -> None: ...


LEFTOVERS = (".*.part", "*.partial", ".saving-*")  # of writes that a kill cut off


class Run:
    """One run folder. Of several processes that train together the first one alone writes into it.

    Args:
        folder: Such as `runs/tokenizer`; it is made when the run starts.
        config: The dataclass that determines the run; for `fit` a `RunSettings`.
        only_export: `fit` takes the weights of `last.ckpt` and does not train; `finish` does nothing.

    Raises:
        ValueError: If the folder was started with another configuration; names the first setting that differs. What
            changes no result may differ, and what may be changed on the way while the run is not finished.

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

    def __init__(self, folder: Path, config: Any, only_export: bool = False):
        self.folder, self.config, self.only_export = Path(folder), config, only_export
        self.writes = rank() == 0
        self.watchers: list[lightning.Callback] = []  # of the user
        self.checkpoint = self.folder / "last.ckpt"
        self.metrics = self.folder / "metrics.csv"
        self._config_file, self._done_file = self.folder / "config.yaml", self.folder / "done.json"
        self._origin_file = self.folder / "origin.json"
        self._started = self._config_file.exists()
        if not self._started and self.checkpoint.exists():
            raise ValueError(
                f"{self.checkpoint} is of a run whose config.yaml is gone; put that back, use another name=..., or "
                f"delete {self.folder} to start over"
            )
        self._origin = Origin.read(self._origin_file) if self._started and self._origin_file.exists() else None
        self._sources: tuple[Source, ...] = ()
        self._differences = self._compare_config() if self._started else []

    def begin_with(self, sources: tuple[Source, ...]) -> None:
        """Take what the run starts from.

        Raises:
            ValueError: If it was begun with something else.
        """
        self._sources = sources
        if self._origin:
            self._origin.compare(sources, self.folder)

    def start(self, precision: str = "", step: int = 0, compiled_from: int | str = "off") -> None:
        """Write `config.yaml` and `origin.json`, once everything that a setting can spoil has been tried."""
        if isinstance(self.config, RunSettings):
            origin = self._origin or Origin(self.config.verb, precision, self._sources)
            origin = replace(origin, compiled_from=compiled_from)
            changed = [
                {"step": step, "setting": name, "from": old, "to": new}
                for name, old, new in self._differences
                if self.config.may_change(name, old, new)
            ]
            new = tuple(change for change in changed if change not in origin.changes)
            self._record(replace(origin, changes=origin.changes + new))
        if self.writes and (not self._started or self._differences):
            save_config(self.config, self._config_file)

    def _record(self, origin: Origin) -> None:
        if self.writes and origin != self._origin:
            origin.write(self._origin_file)
        self._origin = origin

    def clear_leftovers(self) -> None:
        """Remove what a killed process left."""
        if not self.writes:
            return
        for pattern in LEFTOVERS:
            for path in list(self.folder.rglob(pattern)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        remove_shards(self.folder)
        if self.finished:
            self._remove_checkpoints()

    def exported(self) -> str:
        """Return in words where the exported models lie.

        Raises:
            FileNotFoundError: If one is gone.
        """
        folders = [self.folder / name for name in self.config.exports]
        if gone := [folder for folder in folders if not (folder / "config.json").is_file()]:
            raise FileNotFoundError(
                f"{self.folder} is finished, but the model in {gone[0]} is gone; delete {self.folder} to train it again"
            )
        return f"its model is in {' and '.join(map(str, folders))}"

    @property
    def finished(self) -> bool:
        """Whether an earlier process completed this run."""
        return self._done_file.exists()

    @property
    def builds_on(self) -> str:
        """The device on which a module is to be made: "meta" where it is exported from shards, one weight at a time."""
        return "meta" if self.only_export and self.checkpoint.is_dir() else "cpu"

    def finish(self) -> None:
        """Mark the run as complete; the resume checkpoint is no longer needed and goes."""
        if self.only_export or not self.writes:
            return
        with writing(self._done_file) as file:
            file.write_text("{}\n")
        self._remove_checkpoints()

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
                Its `networks`, if it names some, may be compiled.
            stream: `config.batches` batches, which can continue in the middle of an epoch.
            callbacks: What else watches the run; what it logs must be a function of what a checkpoint holds.

        Raises:
            ValueError: If the device or a compiler is not there, the precision or `compile` is another than before,
                `last.ckpt` is damaged, a gradient is not finite, or a process that reads data died.
            KeyboardInterrupt: If Ctrl-C was pressed; everything is saved.
        """
        import lightning

        from ddt_apps.run.accelerator import placement
        from ddt_apps.run.checkpoint import RunCheckpoints
        from ddt_apps.run.compiling import Compiling
        from ddt_apps.run.fitting import RunRecorder, SettingsOfNow, listening, named_workers, quiet_lightning
        from ddt_apps.run.fsdp import WholeBetweenSteps
        from ddt_apps.run.loggers import open_loggers
        from ddt_apps.run.nan_guard import NaNGuard
        from ddt_apps.run.stored import read_when_used

        config, device = self.config, pick_device(self.config.device)
        precision = pick_precision(config.precision, device)
        if self._origin and self._origin.precision != precision:
            before = self._origin.precision
            raise ValueError(f"{self.folder} computes in {before}, not {precision}; set precision={before} to go on")
        found = self._read_checkpoint(module)
        if self.only_export:
            if found is None:
                raise FileNotFoundError(f"{self.checkpoint} is not there, so there is nothing to export yet")
            if self.checkpoint.is_dir():
                read_when_used(module, self.checkpoint)
            else:
                module.load_state_dict(found["state_dict"])
            return
        step = found["global_step"] if found else 0
        compiled_from = self._compiled_from(device, step) if hasattr(module, "networks") else "off"
        # With loss scaling gradients overflow now and then, and their step is left out.
        guards = [] if precision == "16-mixed" else [NaNGuard(self.checkpoint, self.save_checkpoint, config.mendable)]
        noted = Noted()
        recorder = RunRecorder(self.metrics, self.save_checkpoint, config.verb, config.steps, noted)
        compiling = []  # before all others: what they call between two steps is not compiled
        if compiled_from != "off":
            start = None if compiled_from == "auto" else compiled_from
            compiling = [Compiling(start, self._decide, recorder.tell)]
        watchers, opened = [*callbacks, *self.watchers], open_loggers(config, self.folder, self.writes)
        with quiet_lightning(), named_workers(), opened as loggers, listening(noted):
            where = placement(device, precision, config.strategy, getattr(module, "find_unused_parameters", False))
            where["plugins"] += [] if config.sharded else [RunCheckpoints(found)]
            around = [WholeBetweenSteps(module, config.watch_every)] if config.sharded else []
            trainer = lightning.Trainer(
                **where,
                max_steps=config.steps,
                max_epochs=-1,
                gradient_clip_val=config.gradient_clip,
                accumulate_grad_batches=config.accumulate,
                logger=loggers or False,
                log_every_n_steps=recorder.log_every,
                callbacks=[*compiling, SettingsOfNow(), *guards, *around, *watchers, *around, recorder],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            self.start(precision, step, compiled_from)
            compiled = "" if isinstance(compiled_from, str) else ", compiled,"
            told = f"{num_ranks()} x " * (num_ranks() > 1) + f"{device} in {precision}{compiled}"
            tell_start(self.folder, config, told, module, stream, step)
            trainer.fit(module, stream, ckpt_path=self.checkpoint if found else None, weights_only=True)
        if config.sharded:
            module.become_whole()
        if self._origin.compiled_from == "auto":  # it was over before it had decided
            self._decide(math.inf)

    def save_checkpoint(self, trainer: "lightning.Trainer") -> None:
        """Write `last.ckpt` atomically."""
        if self.config.sharded:
            save_sharded(trainer, self.checkpoint)
        else:
            trainer.save_checkpoint(self.checkpoint)

    def _compiled_from(self, device: "torch.device", step: int) -> int | str:
        """Return the step from which networks are compiled, "off", or "auto" where that is still to be decided."""
        before, setting = self._origin.compiled_from if self._origin else "auto", self.config.compile
        was = before if isinstance(before, str) else "on"
        if "auto" not in (was, setting) and was != setting:
            raise ValueError(f"{self.folder} computes with compile={was}, not {setting}; set compile={was} to go on")
        found = pick_compile(was if setting == "auto" else setting, device)
        return found if found != "on" else step if was == "auto" else before

    def _decide(self, compiled_from: float) -> None:
        self._record(replace(self._origin, compiled_from="off" if compiled_from == math.inf else compiled_from))

    def _read_checkpoint(self, module: "lightning.LightningModule") -> dict[str, Any] | None:
        from ddt_apps.run.checkpoint import read_checkpoint
        from ddt_apps.run.nan_guard import leave_out_spoiled

        def found() -> dict[str, Any] | None:
            return read_checkpoint(self.checkpoint, module, self.config.steps) if self.checkpoint.exists() else None

        state = None
        if self.writes and any(self.config.may_change(*difference) for difference in self._differences):
            while (state := found()) and leave_out_spoiled(self.checkpoint, state):
                print(
                    "the steps before the gradient that was not finite are made anew, with other settings", flush=True
                )
        if not self.only_export:
            wait_for_all()
        return state or found()

    def _compare_config(self) -> list[tuple[str, Any, Any]]:
        remedy = f"use another name=..., or delete {self.folder} to start over"
        settings = isinstance(self.config, RunSettings)
        try:
            old = load_config(type(self.config), self._config_file, upgraded=self.config.upgraded if settings else dict)
        except ValueError as error:
            raise ValueError(
                f"{self._config_file} is of another version of this command ({error}); {remedy}"
            ) from error
        found = list(differences(old, self.config))
        # What a run knows from its record is compared by what it is, not by its name.
        known = ("precision", "compile", *self.config.sources) if self._origin else ()
        for key, before, now in found:
            if settings and (key in (*self.config.free, *known) or self._may_change(key, before, now)):
                continue
            raise ValueError(f"{self.folder} was started with {key}={before}, not {now}; {remedy}")
        return found

    def _remove_checkpoints(self) -> None:
        for file in (self.checkpoint, self.folder / "before.ckpt"):
            file.unlink(missing_ok=True)
        remove_shards(self.folder)

    def _may_change(self, key: str, before: Any, now: Any) -> bool:
        return not self.finished and self.config.may_change(key, before, now)
