"""ddt evaluate edits: pictures changed by instruction, against the exact result."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.heldout import HeldOutScene, HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.means import Figures, by_kind, mean_of
from ddt_apps.evaluation.models import Edits, codec_of, computed, described, need
from ddt_apps.evaluation.page import Page, against, side_by_side, sign
from ddt_apps.evaluation.pixels import l1
from ddt_apps.evaluation.scores import Scores, shown
from ddt_apps.pages.report import pairs, section
from ddt_data import Edit, Judge, SceneConfig, Verdict, caption, make_edit, render
from ddt_data.sceneeval.judge import judge_hash
from ddt_data.sceneeval.prompts import canvas_of
from ddt_data.sceneeval.verdicts import shows
from ddt_tokenizer.images import to_tensor, to_uint8


@dataclass(frozen=True, kw_only=True)
class Settings(HeldOutSettings):
    """Settings of `ddt evaluate edits`."""

    count: Annotated[int, Ge(2)] = 600  # edits, half of them of scenes with unseen combinations
    judge: str = "a"


@dataclass
class Edited:
    """What the page shows; pictures uint8 [N, H, W, 3]."""

    edits: list[Edit]
    sources: np.ndarray
    drawn: np.ndarray
    targets: np.ndarray
    verdicts: list[Verdict]


def evaluate(model: Edits, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Edited]:
    """Score a model that edits.

    L1 to the exact target (percent of the range, as MagicBrush), success (the judge sees the target scene: its things,
    tints, places and background), and preservation (L1 to the source outside the boxes of what the edit changes; not
    for background edits, which change all). Beside it: leaving the picture as it is, drawing the target's caption anew
    without looking at the source, and the target through the model's tokenizer.

    Raises:
        ValueError: If the model cannot edit.
    """
    need(model, "edit", "edits")
    codec, judge = codec_of(model), Judge.from_pretrained(settings.judge)
    scenes, config = scenes_for(model, settings)
    edits = [make_edit(s.scene, config, s.rng, s.split) for s in scenes]
    sources = np.stack([render(edit.source, config) for edit in edits])
    targets = np.stack([render(edit.target, config) for edit in edits])
    before, exact = to_tensor(sources), to_tensor(targets)
    unchanged = torch.stack([_unchanged(edit, config.image_size) for edit in edits])
    kinds, instructions = [edit.kind for edit in edits], [edit.instruction for edit in edits]
    seed = settings.seed * 1_000_003 % 2**63

    def measured(images: Tensor) -> tuple[Figures, list[Verdict]]:
        pictures = to_uint8(images)  # as they would be saved
        seen = read(judge, pictures, canvas_of(settings.level))
        verdicts = [shows(e.target, s, p) for e, s, p in zip(edits, seen, pictures, strict=True)]
        success, distance = [100.0 * v.right for v in verdicts], l1(to_tensor(pictures), exact).tolist()
        kept = l1(to_tensor(pictures), before, unchanged).tolist()
        apart = [kept[row] for row, kind in enumerate(kinds) if kind != "background"]
        return {
            **by_split("success", success, scenes),
            **by_split("l1", distance, scenes),
            **(mean_of("l1_outside", apart) if apart else {"l1_outside": 0.0}),
            "kinds": by_kind(kinds, success=success, l1=distance),
        }, verdicts

    drawn = in_batches("edit", len(edits), lambda r: model.edit(before[r], instructions[r], seed + r.start))
    figures, verdicts = measured(drawn)
    controls = {"copy_input": measured(before)[0], "exact_target": measured(exact)[0]}
    if hasattr(model, "draw"):
        texts = [_wanted(edit, s, config) for edit, s in zip(edits, scenes, strict=True)]
        anew = in_batches("draw anew", len(edits), lambda r: model.draw(texts[r], seed + r.start))
        controls["draw_target_caption"] = measured(anew)[0]
    if codec is not None:
        again = in_batches("tokenizer", len(edits), lambda r: codec.decode(codec.encode(exact[r])))
        controls["tokenizer"] = measured(again)[0]
    protocol = settings.protocol(config.image_size) | computed(model) | {"judge": judge_hash(settings.judge)}
    scores = Scores("edits", described(model, name), protocol, figures, controls)
    return scores, Edited(edits, sources, to_uint8(drawn), targets, verdicts)


def _wanted(edit: Edit, scene: HeldOutScene, config: SceneConfig) -> str:
    """A caption of the target that names its background."""
    return caption(edit.target, scene.rng, 0.0, 1.0, size_words=config.size_words, image_size=config.image_size)


def _unchanged(edit: Edit, side: int) -> Tensor:
    """Pixels [H, W] outside the boxes of all things that the edit changes."""
    kept = torch.ones(side, side, dtype=torch.bool)
    for thing in set(edit.source.objects) ^ set(edit.target.objects):
        kept[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size] = False
    return kept


def page(scores: Scores, edited: Edited) -> Page:
    """Show success and distance beside every control, by kind of edit too, and edits."""
    rivals = {
        "model": scores.scores,
        "leaving it as it is": scores.controls["copy_input"],
        "drawing the target's caption anew": scores.controls.get("draw_target_caption"),
        "the exact target through the tokenizer": scores.controls.get("tokenizer"),
        "the exact target (the judge's ceiling)": scores.controls["exact_target"],
    }
    columns = {"success %": "success.all", "of seen": "success.seen", "of unseen": "success.unseen"}
    columns |= {"L1": "l1.all", "L1 of seen": "l1.seen", "L1 of unseen": "l1.unseen", "L1 outside": "l1_outside"}
    copied = scores.controls["copy_input"]["kinds"]
    kinds = [
        [kind, str(f["count"]), shown(f, "success"), shown(f, "l1"), shown(copied[kind], "l1")]
        for kind, f in scores.scores["kinds"].items()
    ]
    cells = [
        (edited.sources[i], edit.instruction, edited.drawn[i], edited.targets[i], f"{sign(v.right)} {v.why or 'drawn'}")
        for i, (edit, v) in enumerate(list(zip(edited.edits, edited.verdicts, strict=True))[:24])
    ]
    return Page(
        title="Edits",
        intro=f"{len(edited.edits)} edits of held-out scenes whose exact result is known.",
        metrics=[
            against(scores, "success.all", "copy_input", "Edited exactly as asked", "leaving it as it is", "%"),
            against(scores, "l1.all", "copy_input", "Edits, L1 to the truth", "leaving it as it is", "%", lower=True),
        ],
        about=(
            "Success: the judge sees the target scene. L1 to the exact target, in percent of the range. L1 outside: to "
            "the source, beyond the boxes of what the edit changes. \u00b1 one standard error."
        ),
        tables=[
            side_by_side(rivals, columns),
            (["kind", "edits", "success %", "L1", "L1 of leaving it"], kinds),
        ],
        sections=[section("Edits", "", pairs(cells))],
    )
