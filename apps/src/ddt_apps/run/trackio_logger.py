"""TrackioLogger: Lightning has loggers for others, but none for trackio."""

import sys
from contextlib import redirect_stdout
from functools import cached_property
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to a project of trackio, local or a Space, as its own environment variables say.

    Args:
        project: To which the run belongs.
        name: Of the run.
        going_on: Whether it goes on with the newest run of that name.
    """

    def __init__(self, project: str, name: str, going_on: bool):
        super().__init__()
        self.project, self._name, self.going_on = project, name, going_on

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self.experiment.id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        return self._run

    @cached_property
    def _run(self) -> Any:
        import trackio

        with redirect_stdout(sys.stderr):  # which says where it logs to
            return trackio.init(self.project, self._name, resume="allow" if self.going_on else "never")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.experiment.config.update(params)

    def finish(self) -> None:
        """Send what is left, and let go of the run."""
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()
