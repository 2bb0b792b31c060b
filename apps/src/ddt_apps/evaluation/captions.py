"""ddt evaluate captions: descriptions parsed back to what they say, against the scene."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import HeldOutScene, HeldOutSettings, scenes_for
from ddt_apps.evaluation.models import Captions, need
from ddt_apps.evaluation.scores import Scores, versions
from ddt_data import Scene, caption, render
from ddt_data.scenes.parsing import Said, parse_caption, true_relations, what_it_shows
from ddt_tokenizer.images import to_tensor


@dataclass(frozen=True)
class CaptionsSettings(HeldOutSettings):
    """Settings of `ddt evaluate captions`."""


@dataclass
class Captioned:
    """What the page shows."""

    pictures: np.ndarray
    captions: list[str]
    truths: list[str]
    right: list[bool]


def evaluate_captions(
    model: Captions, settings: CaptionsSettings = CaptionsSettings(), name: str = "model"
) -> tuple[Scores, Captioned]:
    """Score descriptions of held-out scenes.

    Percent F1 of nouns (as a multiset), counts (noun with its exact number), colours (noun with its tint) and relations
    (either way round; a caption need not tell one, so look at the ceiling); the share of named backgrounds that are
    right; and exact: things, numbers and tints all right. Beside it: the true captions (the ceiling) and another
    scene's description (chance).

    Raises:
        ValueError: The model cannot describe.
    """
    need(model, "caption", "captions")
    scenes, config = scenes_for(model, settings)
    pictures = np.stack([render(s.scene, config) for s in scenes])
    images = to_tensor(pictures)
    given = in_batches("caption", len(scenes), lambda r: model.caption(images[r]))
    truths = [
        caption(s.scene, s.rng, config.style_words, config.background_words, 0.6, config.size_words, config.image_size)
        for s in scenes
    ]
    half = len(given) // 2 + 1
    protocol = {
        "level": settings.level,
        "count": settings.count,
        "seed": settings.seed,
        "image_size": config.image_size,
        "versions": versions(),
    }
    controls = {
        "true_captions": measured(truths, scenes),
        "of_another_picture": measured(given[half:] + given[:half], scenes),
    }
    info = {"name": name, **getattr(model, "identity", {})}
    right = [exact(parse_caption(text), s.scene) for text, s in zip(given, scenes, strict=True)]
    scores = Scores("captions", info, protocol, measured(given, scenes), controls)
    return scores, Captioned(pictures, given, truths, right)


def exact(said: Said, scene: Scene) -> bool:
    """Whether a caption names all things with their numbers and tints, and nothing else."""
    return said.things == what_it_shows(scene)


def measured(texts: list[str], scenes: list[HeldOutScene]) -> dict[str, Any]:
    """Score descriptions of scenes; see `evaluate_captions`."""
    rows = [(parse_caption(text), s.scene) for text, s in zip(texts, scenes, strict=True)]

    def f1(said: Callable[[Said], Iterable], true: Callable[[Scene], Iterable]) -> float:
        pairs = [(Counter(said(a)), Counter(true(b))) for a, b in rows]
        hits = sum((a & b).total() for a, b in pairs)
        total = sum(a.total() + b.total() for a, b in pairs)
        return 200 * hits / total if total else 0.0

    related = [(said.relation, true_relations(scene)) for said, scene in rows]
    hits = sum(said in true for said, true in related)
    told = sum(said is not None for said, _ in related) + sum(bool(true) for _, true in related)
    grounds = [(said.background, scene.background) for said, scene in rows if said.background]
    rights = [100.0 * exact(said, scene) for said, scene in rows]
    return {
        "exact": {
            column: float(np.mean([r for r, s in zip(rights, scenes, strict=True) if s.split in splits]))
            for column, splits in (("all", ("train", "unseen")), ("seen", ("train",)), ("unseen", ("unseen",)))
        },
        "nouns_f1": f1(lambda said: said.counts.elements(), lambda scene: scene.counts.elements()),
        "counts_f1": f1(lambda said: said.counts.items(), lambda scene: scene.counts.items()),
        "colours_f1": f1(
            lambda said: [t for t in said.things.elements() if t[1]],
            lambda scene: [t for t in what_it_shows(scene).elements() if t[1]],
        ),
        "relations_f1": 200 * hits / told if told else 0.0,
        "backgrounds_right": 100 * float(np.mean([a == b for a, b in grounds])) if grounds else None,
        "backgrounds_said": len(grounds),
    }
