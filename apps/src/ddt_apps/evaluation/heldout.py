"""Held-out scenes for the evaluations that need a picture first."""

import random
from dataclasses import dataclass, replace
from typing import Any

from ddt_data import Scene, SceneConfig, SceneGenerator, level_config
from ddt_data.scenes.scene import SPLITS

SEED = 700_000_001  # far from the seeds that anybody trains with


@dataclass(frozen=True)
class HeldOutSettings:
    """Which held-out scenes an evaluation draws."""

    level: str = "standard"  # tiny, standard or hard
    count: int = 1000  # pictures, half of them with unseen combinations
    seed: int = 0

    def __post_init__(self):
        level_config(self.level)
        if self.count < 2:
            raise ValueError(f"count ({self.count}) of pictures must be at least 2, one of each split")


@dataclass(frozen=True)
class HeldOutScene:
    """A scene, whether its combinations occur in training, and a source of choices about it."""

    scene: Scene
    split: str  # "train": new scenes of known combinations; "unseen": with one that training never shows
    rng: random.Random


def held_out_scenes(level: str, image_size: int, count: int, seed: int) -> tuple[list[HeldOutScene], SceneConfig]:
    """Draw `count` scenes of a level at a picture size, one half of each split; and their config."""
    config = replace(level_config(level), image_size=image_size)
    sources = {split: SceneGenerator(config, SEED + seed, split) for split in SPLITS}
    splits = [SPLITS[i % 2] for i in range(count)]
    scenes = [
        HeldOutScene(sources[split][i], split, random.Random(f"held out {seed} {i}")) for i, split in enumerate(splits)
    ]
    return scenes, config


def scenes_for(model: Any, settings: HeldOutSettings) -> tuple[list[HeldOutScene], SceneConfig]:
    """Draw what the settings ask for, at the model's picture size or else the level's; and their config."""
    size = getattr(model, "image_size", level_config(settings.level).image_size)
    return held_out_scenes(settings.level, size, settings.count, settings.seed)


def by_split(values: list[float], scenes: list[HeldOutScene]) -> dict[str, float]:
    """Mean over all, and over each split where it occurs."""
    columns = {"all": values} | {
        {"train": "seen", "unseen": "unseen"}[split]: [
            v for v, s in zip(values, scenes, strict=True) if s.split == split
        ]
        for split in SPLITS
    }
    return {name: sum(some) / len(some) for name, some in columns.items() if some}
