"""Settings that every training run has."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ddt_tokenizer.limits import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed, check_settings

LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, kw_only=True)
class RunSettings(ABC):
    """What `Run.fit` has to know of a run; the settings of a verb add what is trained, and on what."""

    verb: ClassVar[str]  # of the command, and on the progress line
    exports: ClassVar[tuple[str, ...]] = ()  # folders of the models that it leaves
    sources: ClassVar[tuple[str, ...]] = ()  # settings that name what it starts from
    # Settings that change no result, and may differ when it is continued.
    free: ClassVar[tuple[str, ...]] = ("name", "device", "devices", "workers", "watch_every", "loggers", "callbacks")
    mendable: ClassVar[tuple[str, ...]] = ("gradient_clip",)  # settings that may be changed on the way
    short: ClassVar[dict[str, str]] = {}  # what may be said in place of longer keys, alike in all verbs
    former: ClassVar[dict[str, str]] = {"tensorboard": "loggers=[tensorboard], or loggers=[] for none,"}

    name: str  # of the run: runs/<name>
    seed: Seed = 0  # of the first weights, the order of samples and all noise
    device: str = "auto"  # auto (the accelerator if there is one), cpu, cuda, mps, npu or xpu
    # How many of this machine share each batch, a process on each; auto: one, or as many as torchrun or srun started.
    devices: Literal["auto"] | PositiveInt = "auto"
    # Of several processes: ddp keeps a copy of the model in each, fsdp2 a share of it.
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    # auto (the fastest safe one of the device), or as Lightning has them: 32-true or 32, bf16-mixed or bf16, ...
    precision: str | PositiveInt = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # networks, by torch.compile; auto: if training takes ten minutes
    workers: NonNegativeInt = 0  # processes that read and decode samples
    accumulate: PositiveInt = 1  # batches whose gradients make one step
    gradient_clip: NonNegativeFloat | None = 1.0  # largest gradient norm; 0 or null: any
    watch_every: PositiveInt = 100  # steps between two measurements
    # Of tensorboard, wandb, mlflow, trackio, as in [tensorboard, wandb]; null: tensorboard where it is installed.
    loggers: tuple[LoggerName, ...] | None = None
    # Lightning callbacks of your own: package.module.Class, or file.py:Class.
    callbacks: tuple[str, ...] = ()

    def __post_init__(self):
        check_settings(self)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the model."""
        return self.strategy == "fsdp2"

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
        values = dict(values)
        if "tensorboard" in values:
            values["loggers"] = None if values.pop("tensorboard") else []
        return values
