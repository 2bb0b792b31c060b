"""Settings that every training run has."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class RunSettings(ABC):
    """What `Run.fit` has to know of a run; the settings of a verb add what is trained, and on what."""

    verb: ClassVar[str]  # of the command, and on the progress line
    exports: ClassVar[tuple[str, ...]] = ()  # folders of the models that it leaves
    sources: ClassVar[tuple[str, ...]] = ()  # settings that name what it starts from
    # Settings that change no result, and may differ when it is continued.
    free: ClassVar[tuple[str, ...]] = ("name", "device", "workers", "watch_every", "tensorboard")
    mendable: ClassVar[tuple[str, ...]] = ("gradient_clip",)  # settings that may be changed on the way

    name: str  # of the run: runs/<name>
    seed: int = 0  # of the first weights, the order of samples and all noise
    device: str = "auto"  # auto (the accelerator if there is one), cpu, cuda or mps
    # auto (the fastest safe one of the device), or as Lightning has them: 32-true or 32, bf16-mixed or bf16, ...
    precision: str | int = "auto"
    workers: int = 0  # processes that read and decode samples
    accumulate: int = 1  # batches whose gradients make one step
    gradient_clip: float | None = 1.0  # largest gradient norm
    watch_every: int = 100  # steps between two measurements
    tensorboard: bool = True  # where tensorboard is installed

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def batches(self) -> int:
        """Batches of the whole run, steps * accumulate."""
        return self.steps * self.accumulate

    def may_change(self, setting: str, before: Any, now: Any) -> bool:
        """Return whether a run that is under way may go on with another value of a setting."""
        return setting in self.mendable

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a run's config.yaml, as an older version may have written them, as they stand now."""
        return values
