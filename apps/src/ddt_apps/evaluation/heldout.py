"""Held-out scenes, or pictures of the user's, for the evaluations that need a picture first."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.scores import ERROR, versions
from ddt_data import Scene, SceneConfig, SceneGenerator, ShardDataset, caption, level_config
from ddt_data.scenes.scene import SPLITS
from ddt_tokenizer.limits import Seed, check_settings
from ddt_tokenizer.precision import Precision

SEED = 700_000_001  # far from the seeds that anybody trains with
COLUMNS = {"all": SPLITS, "seen": ("train",), "unseen": ("unseen",)}  # of a table, with the splits in each


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """Which held-out scenes an evaluation draws."""

    level: str = "standard"  # tiny, standard or hard
    count: Annotated[int, Ge(2)] = 1000  # pictures, half of them with unseen combinations
    seed: Seed = 0
    precision: Precision = "32"  # in which a run of ours computes: 32 or bf16

    def __post_init__(self):
        check_settings(self)
        level_config(self.level)

    def protocol(self, image_size: int) -> dict[str, Any]:
        """Return what scores depend on: these settings, the picture size, and the versions of our code."""
        return {
            "level": self.level,
            "count": self.count,
            "seed": self.seed,
            "image_size": image_size,
            "versions": versions(),
        }


@dataclass(frozen=True)
class HeldOutScene:
    """A scene, whether its combinations occur in training, and a source of choices about it."""

    scene: Scene
    split: str  # "train": new scenes of known combinations; "unseen": with one that training never shows
    rng: random.Random

    def describe(self, config: SceneConfig) -> str:
        """Draw a caption, worded as those of training."""
        return caption(
            self.scene, self.rng, config.style_words, config.background_words, 0.6, config.size_words, config.image_size
        )


def held_out_scenes(level: str, image_size: int, count: int, seed: int) -> tuple[list[HeldOutScene], SceneConfig]:
    """Draw `count` scenes of a level at a picture size, one half of each split; and their config."""
    config = replace(level_config(level), image_size=image_size)
    sources = {split: SceneGenerator(config, SEED + seed, split) for split in SPLITS}
    splits = [SPLITS[i % 2] for i in range(count)]
    scenes = [
        HeldOutScene(sources[split][i], split, random.Random(f"held out {seed} {i}")) for i, split in enumerate(splits)
    ]
    return scenes, config


def shard_pictures(folder: str, image_size: int, count: int) -> tuple[np.ndarray, str]:
    """Return `count` pictures uint8 [N, H, W, 3] spread over a shard folder, and what they are for the protocol.

    Raises:
        ValueError: If they have another size, or the folder holds none.
    """
    shards = ShardDataset(folder)
    if shards.manifest.image_size != image_size:
        raise ValueError(
            f"pictures in '{folder}' have {shards.manifest.image_size} px, the tokenizer takes {image_size}; "
            f"pack them again with --image-size {image_size}"
        )
    hashes = "".join(shard.sha256 for shard in shards.manifest.shards)
    count = min(count, len(shards))
    pictures = np.stack([shards[i * len(shards) // count]["image"] for i in range(count)])
    return pictures, f"{Path(folder).name}, evenly spread, shards {hashlib.sha256(hashes.encode()).hexdigest()[:12]}"


def scenes_for(model: Any, settings: HeldOutSettings) -> tuple[list[HeldOutScene], SceneConfig]:
    """Draw what the settings ask for, at the model's picture size or else the level's; and their config."""
    size = getattr(model, "image_size", level_config(settings.level).image_size)
    return held_out_scenes(settings.level, size, settings.count, settings.seed)


def by_split(name: str, values: Sequence[float], scenes: Sequence[HeldOutScene]) -> Figures:
    """Return the means over all, over seen and over unseen combinations where they occur, and their errors."""
    means, errors = {}, {}
    for column, splits in COLUMNS.items():
        rows = [value for value, scene in zip(values, scenes, strict=True) if scene.split in splits]
        if rows:
            means[column], errors[column] = mean_of(column, rows).values()
    return {name: means, name + ERROR: errors}
