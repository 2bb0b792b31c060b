"""ddt evaluate scenes: SceneEval, strict scores of pictures drawn from prompts, with every control beside them."""

import inspect
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.features import clip_score
from ddt_apps.evaluation.models import Draws, codec_of, need
from ddt_apps.evaluation.scores import Scores, versions
from ddt_data import Judge, Prompt, Seen, Verdict, level_config, load_prompts, render, scene_for, verdict
from ddt_data.sceneeval.judge import judge_hash
from ddt_data.sceneeval.prompts import canvas_of, prompts_hash
from ddt_tokenizer.images import to_tensor, to_uint8


@dataclass(frozen=True)
class ScenesSettings:
    """Settings of `ddt evaluate scenes`."""

    level: str = "standard"  # tiny (32 px, the demo's), standard (64 px) or hard (crowds, sizes, "between")
    pictures: int = 4  # for each prompt
    seed: int = 0
    judge: str = "a"  # an embedded judge or a file; its verdict is the score
    second_judge: str = "b"  # only for the agreement
    guidance: float = 1.5  # of drawing, for runs of ours
    temperature: float = 0.7
    backgrounds: str | None = None  # folder of pictures to put behind the real scenes of the controls
    clip: str | None = None  # folder of a transformers CLIP model, for the CLIP-score

    def __post_init__(self):
        level_config(self.level)
        if self.pictures < 1:
            raise ValueError(f"pictures ({self.pictures}) for each prompt must be at least 1")


@dataclass
class Judged:
    """What `evaluate_scenes` shows on its page: pictures uint8 [N, H, W, 3] with their prompts and verdicts."""

    prompts: list[Prompt]
    pictures: np.ndarray
    seen: list[list[Seen]]
    verdicts: list[Verdict]


def evaluate_scenes(
    model: Draws, settings: ScenesSettings = ScenesSettings(), name: str = "model"
) -> tuple[Scores, Judged]:
    """Score a model that draws.

    The score of a category is the share of right pictures, Overall the mean of the six. Beside it, on the same prompts:
    real renders (the judge's ceiling, by both judges), the renders through the model's tokenizer (its ceiling, also
    from the n coarsest ids), the pictures scored against other prompts of their category (chance), and how often the
    two judges agree.

    Args:
        model: Draws; with a `codec`, the tokenizer's ceilings are measured too.
        settings: What to measure.
        name: Of the model, for tables.

    Returns:
        The scores, and the pictures with their verdicts.

    Raises:
        ValueError: The model cannot draw, or draws pictures that are not square.
    """
    need(model, "draw", "scenes")
    prompts = [p for p in load_prompts(settings.level) for _ in range(settings.pictures)]
    canvas = canvas_of(settings.level)
    judge, second = Judge.from_pretrained(settings.judge), Judge.from_pretrained(settings.second_judge)
    texts = [prompt.text for prompt in prompts]
    base = settings.seed * 1_000_003
    pictures = in_batches("draw", len(prompts), lambda rows: to_uint8(model.draw(texts[rows], base + rows.start)))
    side = pictures.shape[1]
    if pictures.shape[2] != side:
        raise ValueError(f"the model drew pictures of {pictures.shape[2]} x {side} pixels; SceneEval needs squares")

    started = time.perf_counter()
    seen = read(judge, pictures, canvas)
    verdicts = [verdict(p, s) for p, s in zip(prompts, seen, strict=True)]
    print(
        f"judged {len(pictures)} pictures at {len(pictures) / (time.perf_counter() - started):.0f} a second", flush=True
    )
    judged = Judged(prompts, pictures, seen, verdicts)

    real = real_pictures(prompts, settings, side)
    real_verdicts = [
        [verdict(p, s) for p, s in zip(prompts, read(j, real, canvas), strict=True)] for j in (judge, second)
    ]
    second_verdicts = [verdict(p, s) for p, s in zip(prompts, read(second, pictures, canvas), strict=True)]
    others = other_prompts(prompts, settings.pictures)
    controls: dict[str, Any] = {
        "real": summary(prompts, real_verdicts[0]),
        "real_second_judge": summary(prompts, real_verdicts[1]),
        "shuffled_prompts": summary(prompts, [verdict(p, s) for p, s in zip(others, seen, strict=True)]),
        "judges_agree": {
            "drawn": _agreement(verdicts, second_verdicts),
            "real": _agreement(*real_verdicts),
        },
    }
    if (codec := codec_of(model)) is not None:
        controls["tokenizer"], controls["tokenizer_prefixes"] = _ceilings(codec, prompts, real, judge, canvas)
    protocol = {
        "level": settings.level,
        "prompts": prompts_hash(settings.level),
        "pictures": settings.pictures,
        "seed": settings.seed,
        "image_size": side,
        "resize": f"bicubic, antialiased, to {canvas} px",
        "judge": judge_hash(settings.judge),
        "second_judge": judge_hash(settings.second_judge),
        "backgrounds": settings.backgrounds,
        "clip": settings.clip,
        "versions": versions(),
    }
    scores = summary(prompts, verdicts) | {
        "best_of_pictures": _best_of(verdicts, settings.pictures),
        "count_error": _count_error(prompts, seen),
        "second_judge_overall": summary(prompts, second_verdicts)["overall"],
    }
    if settings.clip:
        scores["clip_score"] = clip_score(settings.clip, to_tensor(pictures), texts)
    info = {"name": name, **getattr(model, "identity", {})}
    return Scores("scenes", info, protocol, scores, controls), judged


def real_pictures(prompts: Sequence[Prompt], settings: ScenesSettings, side: int) -> np.ndarray:
    """Render a scene for each prompt, another one each time the prompt comes."""
    config = replace(level_config(settings.level), image_size=side)
    behind = _backgrounds(settings.backgrounds, side)

    def draw(row: int, prompt: Prompt) -> np.ndarray:
        scene = scene_for(prompt, config, seed=settings.seed * 1_000_003 + row)
        return render(scene, config, behind[row % len(behind)] if behind else None)

    return np.stack([draw(row, prompt) for row, prompt in enumerate(prompts)])


def _backgrounds(folder: str | None, side: int) -> list[np.ndarray]:
    if folder is None:
        return []
    from ddt_data import load_image
    from ddt_data.readers.folder import find_pictures

    if not Path(folder).is_dir() or not (paths := find_pictures(Path(folder))):
        raise FileNotFoundError(f"{folder}: no folder with pictures to put behind scenes")
    return [load_image(path, side) for path in paths]


def other_prompts(prompts: Sequence[Prompt], pictures: int) -> list[Prompt]:
    """For each prompt another one of its category, half the category away."""
    by_category: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_category.setdefault(prompt.category, []).append(row)
    others = list(prompts)
    for rows in by_category.values():
        step = len(rows) // pictures // 2 * pictures
        for i, row in enumerate(rows):
            others[row] = prompts[rows[(i + step) % len(rows)]]
    return others


def summary(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Percent right by category, all and on seen and unseen combinations, and their means over the categories.

    `standard_error` of Overall takes the pictures of one prompt as one draw.
    """
    categories = dict.fromkeys(prompt.category for prompt in prompts)
    table: dict[str, Any] = {}
    variance = 0.0
    for category in categories:
        rows = [(p, v.right) for p, v in zip(prompts, verdicts, strict=True) if p.category == category]
        columns = {"all": rows, "seen": [r for r in rows if r[0].seen], "unseen": [r for r in rows if not r[0].seen]}
        table[category] = {
            column: 100 * sum(right for _, right in some) / len(some) for column, some in columns.items() if some
        }
        by_prompt: dict[str, list[bool]] = {}
        for prompt, right in rows:
            by_prompt.setdefault(prompt.key, []).append(right)
        means = [np.mean(rights) for rights in by_prompt.values()]
        variance += float(np.var(means)) / len(means)
    overall = {
        column: float(np.mean([row[column] for row in table.values() if column in row]))
        for column in ("all", "seen", "unseen")
        if any(column in row for row in table.values())
    }
    error = 100 * math.sqrt(variance) / len(categories)
    return {"overall": overall["all"], "standard_error": error, "overall_by_split": overall, "categories": table}


def _best_of(verdicts: Sequence[Verdict], pictures: int) -> float:
    """Percent of prompts with at least one right picture."""
    rights = np.array([v.right for v in verdicts]).reshape(-1, pictures)
    return float(100 * rights.any(1).mean())


def _count_error(prompts: Sequence[Prompt], seen: Sequence[list[Seen]]) -> float | None:
    """Mean distance between the number of things asked for and drawn, over counting prompts."""
    errors = [
        abs(Counter(thing.noun for thing in things)[prompt.asked[0].noun] - prompt.asked[0].count)
        for prompt, things in zip(prompts, seen, strict=True)
        if prompt.category == "counting"
    ]
    return float(np.mean(errors)) if errors else None


def _agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> float:
    """Percent of pictures on which two judges give the same verdict."""
    return float(100 * np.mean([a.right == b.right for a, b in zip(first, second, strict=True)]))


def _ceilings(
    codec: Any, prompts: Sequence[Prompt], real: np.ndarray, judge: Judge, canvas: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Score real renders after encoding and decoding; Overall also from the n coarsest ids."""
    ids = in_batches("encode", len(real), lambda rows: codec.encode(to_tensor(real[rows])))

    def scored(**settings: int) -> dict[str, Any]:
        drawn = in_batches("decode", len(ids), lambda rows: to_uint8(codec.decode(ids[rows], **settings)))
        verdicts = [verdict(p, s) for p, s in zip(prompts, read(judge, drawn, canvas), strict=True)]
        return summary(prompts, verdicts)

    whole = scored()
    prefixes = {}
    if "keep_tokens" in inspect.signature(codec.decode).parameters:
        kept = [2**i for i in range(codec.num_tokens.bit_length()) if 2**i < codec.num_tokens]
        prefixes = {str(n): scored(keep_tokens=n)["overall"] for n in kept}
    return whole, prefixes | {str(codec.num_tokens): whole["overall"]}
