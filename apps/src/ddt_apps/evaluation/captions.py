"""ddt evaluate captions: descriptions parsed back to what they say, against the scene."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import HeldOutScene, HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.means import Figures, mean_of, ratio_of
from ddt_apps.evaluation.models import Captions, computed, described, need
from ddt_apps.evaluation.page import SHOWN, Page, against, marked, side_by_side, spread
from ddt_apps.evaluation.scores import Scores
from ddt_apps.pages.report import grid, section
from ddt_data import Scene, render
from ddt_data.scenes.parsing import Said, parse_caption, true_relations, what_it_shows
from ddt_tokenizer.images import to_tensor


@dataclass(frozen=True, kw_only=True)
class Settings(HeldOutSettings):
    """Settings of `ddt evaluate captions`."""


@dataclass
class Captioned:
    """What the page shows."""

    pictures: np.ndarray
    captions: list[str]
    truths: list[str]
    right: list[bool]


def evaluate(model: Captions, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Captioned]:
    """Score descriptions of held-out scenes.

    Percent F1 of nouns (as a multiset), counts (noun with its exact number), colours (noun with its tint) and relations
    (either way round; a caption need not tell one, so look at the ceiling); the share of named backgrounds that are
    right; and exact: things, numbers and tints all right. Beside it: the true captions (the ceiling) and another
    scene's description (chance).

    Raises:
        ValueError: If the model cannot describe.
    """
    need(model, "caption", "captions")
    scenes, config = scenes_for(model, settings)
    pictures = np.stack([render(s.scene, config) for s in scenes])
    images = to_tensor(pictures)
    given = in_batches("caption", len(scenes), lambda r: model.caption(images[r]))
    truths = [s.describe(config) for s in scenes]
    half = len(given) // 2 + 1
    controls = {
        "true_captions": measured(truths, scenes),
        "of_another_picture": measured(given[half:] + given[:half], scenes),
    }
    right = [exact(parse_caption(text), s.scene) for text, s in zip(given, scenes, strict=True)]
    figures = measured(given, scenes)
    protocol = settings.protocol(config.image_size) | computed(model)
    scores = Scores("captions", described(model, name), protocol, figures, controls)
    return scores, Captioned(pictures, given, truths, right)


def exact(said: Said, scene: Scene) -> bool:
    """Return whether a caption names all things with their numbers and tints, and nothing else."""
    return said.things == what_it_shows(scene)


def measured(texts: Sequence[str], scenes: Sequence[HeldOutScene]) -> Figures:
    """Score descriptions of scenes; see `evaluate`."""
    rows = [(parse_caption(text), s.scene) for text, s in zip(texts, scenes, strict=True)]

    def f1(name: str, said: Callable[[Said], Iterable], true: Callable[[Scene], Iterable]) -> Figures:
        pairs = [(Counter(said(a)), Counter(true(b))) for a, b in rows]
        return ratio_of(name, [200 * (a & b).total() for a, b in pairs], [a.total() + b.total() for a, b in pairs])

    related = [(said.relation, true_relations(scene)) for said, scene in rows]
    grounds = [100.0 * (said.background == scene.background) for said, scene in rows if said.background]
    return {
        **by_split("exact", [100.0 * exact(said, scene) for said, scene in rows], scenes),
        **f1("nouns_f1", lambda said: said.counts.elements(), lambda scene: scene.counts.elements()),
        **f1("counts_f1", lambda said: said.counts.items(), lambda scene: scene.counts.items()),
        **f1(
            "colours_f1",
            lambda said: [t for t in said.things.elements() if t[1]],
            lambda scene: [t for t in what_it_shows(scene).elements() if t[1]],
        ),
        **ratio_of(
            "relations_f1",
            [200 * (said in true) for said, true in related],
            [(said is not None) + bool(true) for said, true in related],
        ),
        **(mean_of("backgrounds_right", grounds) if grounds else {"backgrounds_right": None}),
        "backgrounds_said": len(grounds),
    }


def page(scores: Scores, captioned: Captioned) -> Page:
    """Show all figures beside the ceiling and chance, and descriptions, right and wrong ones."""
    rivals = {
        "model": scores.scores,
        "another scene's (chance)": scores.controls["of_another_picture"],
        "true captions (ceiling)": scores.controls["true_captions"],
    }
    columns = {"exact": "exact.all", "seen": "exact.seen", "unseen": "exact.unseen"} | {
        name.replace("_", " "): name
        for name in ("nouns_f1", "counts_f1", "colours_f1", "relations_f1", "backgrounds_right")
    }
    sections = []
    for right, title in ((True, "Right"), (False, "Wrong")):
        some = spread([i for i, r in enumerate(captioned.right) if r == right], 2 * SHOWN)
        cells = [
            (
                captioned.pictures[i],
                marked(right, captioned.captions[i], "" if right else f"true is \u201c{captioned.truths[i]}\u201d"),
            )
            for i in some
        ]
        if cells:
            sections.append(section(title, "", grid(cells)))
    return Page(
        title="Descriptions",
        intro=f"{len(captioned.captions)} held-out scenes described.",
        metrics=[against(scores, "exact.all", "of_another_picture", "Described exactly", "another scene's words", "%")],
        about="Percent, \u00b1 one standard error, of descriptions parsed back to what they say.",
        tables=[side_by_side(rivals, columns)],
        sections=sections,
    )
