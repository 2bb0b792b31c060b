"""Settings of `ddt demo` and of its stages; read before anything heavy is loaded, so that a wrong key is answered."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from ddt_apps.run.carrying_out import run_folder
from ddt_apps.run.config import load_config
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.settings import Pretrain, TrainTokenizer, Tune
from ddt_tokenizer.limits import NonNegativeFloat, Seed, check_settings

STAGES = {  # settings of a stage are reached as, for example, tokenizer.batch_size=32
    "tokenizer": (TrainTokenizer, "tiny/tokenizer", ["held_out=0"]),  # measures on other scenes
    "pretrain": (Pretrain, "tiny/pretrain", []),
    "sft": (Tune, "tiny/sft", []),
}


@dataclass(frozen=True)
class Demo:
    """Settings of `ddt demo`; those of the stages are reached by their names."""

    name: str = "demo"  # of the run: runs/<name>
    scenes: Annotated[int, Ge(12)] = 12_000  # for training
    held_out: Annotated[int, Ge(12)] = 512  # scenes of each benchmark, half of them with unseen combinations
    seed: Seed = 0
    guidance: NonNegativeFloat = 1.5  # of text to image
    temperature: NonNegativeFloat = 0.7  # of text to image; at 1 a small model strays into mosaics
    stages: tuple[str, ...] = ()  # overrides of the stages, as they were given

    def __post_init__(self):
        check_settings(self)

    @property
    def folder(self) -> Path:
        """Folder of the run, which holds those of the stages."""
        return run_folder(self.name)


def load_demo(overrides: list[str]) -> tuple[Demo, dict[str, RunSettings]]:
    """Build the settings of the demo and, by their names, of its stages.

    Raises:
        ValueError: If a key is unknown, or a value out of range.

    Example:
        >>> demo, stages = load_demo(["name=mine", "sft.batch_size=8"])
        >>> demo.name, stages["sft"].batch_size, stages["sft"].model
        ('mine', 8, 'runs/mine/pretrain')
    """
    routed = tuple(o for o in overrides if o.split(".")[0] in STAGES)
    demo = load_config(Demo, None, [o for o in overrides if o not in routed])
    demo = replace(demo, stages=routed)
    data = demo.folder / "data"
    forced = {
        "tokenizer": [f"data={data / 'train'}"],
        "pretrain": [f"data={data / 'train-ids'}"],
        "sft": [f"data={data / 'train-ids'}", f"model={demo.folder / 'pretrain'}"],
    }
    named = {stage: [*forced[stage], f"name={stage}", f"seed={demo.seed}"] for stage in STAGES}
    return demo, {
        stage: load_config(cls, source, [*own, *_of(stage, routed), *named[stage]])
        for stage, (cls, source, own) in STAGES.items()
    }


def _of(stage: str, overrides: tuple[str, ...]) -> list[str]:
    return [o.removeprefix(f"{stage}.") for o in overrides if o.startswith(f"{stage}.")]
