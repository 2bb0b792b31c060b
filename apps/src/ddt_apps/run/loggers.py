"""Loggers by name: where the figures of a run go beside `metrics.csv`."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ddt_apps.run.atomic import writing
from ddt_apps.run.config import plain
from ddt_apps.run.settings import RunSettings

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PROJECT = "ddt"  # under which runs stand, where the environment names no other
IDS = "loggers.json"  # by which loggers know a run that goes on


def check_loggers(config: RunSettings) -> None:
    """Refuse loggers that are not installed.

    Raises:
        ValueError: If one is not.
    """
    for name in config.loggers or ():
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"loggers: {name} is not installed; install it (pip install {name}), or leave it out")


@contextmanager
def open_loggers(config: RunSettings, folder: Path, writes: bool) -> "Iterator[list[Logger]]":
    """Open the loggers of a run for the block; where the run goes on, so do they.

    Args:
        config: Without `loggers`, TensorBoard is one where it is installed.
        folder: Of the run.
        writes: Whether this process is the one, of several, that writes.

    Raises:
        ValueError: If one cannot be opened.
    """
    names = config.loggers
    if names is None:
        names = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    ids = json.loads((folder / IDS).read_text()) if (folder / IDS).exists() else {}
    loggers = {name: OPEN[name](config, folder, ids.get(name)) for name in names}
    others = [name for name in names if name != "tensorboard"]
    for name in others if writes else ():
        if name != "mlflow" or name not in ids:  # which takes settings once
            loggers[name].log_hyperparams(plain(config))
    if writes and set(others) - set(ids):
        with writing(folder / IDS) as file:
            file.write_text(json.dumps(ids | {name: loggers[name].version for name in others}) + "\n")
    finished = False
    try:
        yield list(loggers.values())
        finished = True
    finally:  # threads of theirs have something to send; and the next run of this process is another one to them
        if writes and "wandb" in names:
            loggers["wandb"].experiment.finish(exit_code=0 if finished else 1)
        if writes and "trackio" in names:
            loggers["trackio"].finish()


def _tensorboard(config: RunSettings, folder: Path, known: str | None) -> "Logger":
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="")


def _wandb(config: RunSettings, folder: Path, known: str | None) -> "Logger":
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    logger = WandbLogger(config.name, save_dir=folder.absolute(), id=known, project=project)
    try:
        _ = logger.experiment
    except wandb.Error as error:
        raise ValueError(f"loggers: wandb: {error}; log in (wandb login), or set WANDB_MODE=offline") from error
    return logger


def _mlflow(config: RunSettings, folder: Path, known: str | None) -> "Logger":
    import mlflow
    from lightning.pytorch.loggers import MLFlowLogger

    experiment, uri = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), mlflow.get_tracking_uri()
    try:
        logger = MLFlowLogger(experiment, config.name, uri, run_id=known)
        _ = logger.experiment
    except mlflow.MlflowException as error:
        raise ValueError(f"loggers: mlflow at {uri}: {error}; set MLFLOW_TRACKING_URI") from error
    return logger


def _trackio(config: RunSettings, folder: Path, known: str | None) -> "Logger":
    from ddt_apps.run.trackio_logger import TrackioLogger

    return TrackioLogger(os.environ.get("TRACKIO_PROJECT", PROJECT), config.name, going_on=known is not None)


OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
