"""ddt evaluate edits: pictures changed by instruction, against the exact result."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.heldout import HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.models import Edits, codec_of, need
from ddt_apps.evaluation.pixels import l1
from ddt_apps.evaluation.scores import Scores, versions
from ddt_data import Edit, Judge, Scene, caption, make_edit, render
from ddt_data.sceneeval.judge import judge_hash
from ddt_data.sceneeval.prompts import canvas_of
from ddt_data.sceneeval.verdicts import shows
from ddt_tokenizer.images import to_tensor, to_uint8


@dataclass(frozen=True)
class EditsSettings(HeldOutSettings):
    """Settings of `ddt evaluate edits`."""

    count: int = 600  # edits, half of them of scenes with unseen combinations
    judge: str = "a"


@dataclass
class Edited:
    """What the page shows; pictures uint8 [N, H, W, 3]."""

    edits: list[Edit]
    sources: np.ndarray
    drawn: np.ndarray
    targets: np.ndarray
    verdicts: list


def evaluate_edits(
    model: Edits, settings: EditsSettings = EditsSettings(), name: str = "model"
) -> tuple[Scores, Edited]:
    """Score a model that edits.

    L1 to the exact target (percent of the range, as MagicBrush), success (the judge sees the target scene: its things,
    tints, places and background), and preservation (L1 to the source outside the boxes of what the edit changes; not
    for background edits, which change all). Beside it: leaving the picture as it is, drawing the target's caption anew
    without looking at the source, and the target through the model's tokenizer.

    Raises:
        ValueError: The model cannot edit.
    """
    need(model, "edit", "edits")
    codec, judge = codec_of(model), Judge.from_pretrained(settings.judge)
    scenes, config = scenes_for(model, settings)
    edits = [make_edit(s.scene, config, s.rng, s.split) for s in scenes]
    sources = np.stack([render(edit.source, config) for edit in edits])
    targets = np.stack([render(edit.target, config) for edit in edits])
    before, exact = to_tensor(sources), to_tensor(targets)
    unchanged = torch.stack([_unchanged(edit, config.image_size) for edit in edits])
    kinds = [edit.kind for edit in edits]

    def measured(images: Tensor) -> tuple[dict[str, Any], list]:
        images = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).float() / 127.5 - 1  # as it would be saved
        pictures = to_uint8(images)
        seen = read(judge, pictures, canvas_of(settings.level))
        verdicts = [shows(e.target, s, p) for e, s, p in zip(edits, seen, pictures, strict=True)]
        distance, kept = l1(images, exact).tolist(), l1(images, before, unchanged).tolist()
        success = [100.0 * v.right for v in verdicts]
        apart = [row for row, kind in enumerate(kinds) if kind != "background"]
        table = {
            kind: {
                "success": float(np.mean([s for s, k in zip(success, kinds, strict=True) if k == kind])),
                "l1": float(np.mean([d for d, k in zip(distance, kinds, strict=True) if k == kind])),
                "count": count,
            }
            for kind, count in sorted(Counter(kinds).items())
        }
        return {
            "success": by_split(success, scenes),
            "l1": by_split(distance, scenes),
            "l1_outside": float(np.mean([kept[row] for row in apart])) if apart else 0.0,
            "kinds": table,
        }, verdicts

    instructions = [edit.instruction for edit in edits]
    drawn = in_batches(
        "edit", len(edits), lambda r: model.edit(before[r], instructions[r], settings.seed * 1_000_003 + r.start)
    )
    scores, verdicts = measured(drawn)
    controls = {"copy_input": measured(before)[0], "exact_target": measured(exact)[0]}
    if hasattr(model, "draw"):
        texts = [_describe(edit.target, s.rng, config) for edit, s in zip(edits, scenes, strict=True)]
        anew = in_batches("draw anew", len(edits), lambda r: model.draw(texts[r], settings.seed * 1_000_003 + r.start))
        controls["draw_target_caption"] = measured(anew)[0]
    if codec is not None:
        again = in_batches("tokenizer", len(edits), lambda r: codec.decode(codec.encode(exact[r])))
        controls["tokenizer"] = measured(again)[0]
    protocol = {
        "level": settings.level,
        "count": settings.count,
        "seed": settings.seed,
        "image_size": config.image_size,
        "judge": judge_hash(settings.judge),
        "versions": versions(),
    }
    info = {"name": name, **getattr(model, "identity", {})}
    page = Edited(edits, sources, to_uint8(drawn), targets, verdicts)
    return Scores("edits", info, protocol, scores, controls), page


def _describe(scene: Scene, rng: Any, config: Any) -> str:
    return caption(scene, rng, 0.0, 1.0, size_words=config.size_words, image_size=config.image_size)


def _unchanged(edit: Edit, side: int) -> Tensor:
    """Pixels [H, W] outside the boxes of all things that the edit changes."""
    kept = torch.ones(side, side, dtype=torch.bool)
    for thing in set(edit.source.objects) ^ set(edit.target.objects):
        kept[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size] = False
    return kept
