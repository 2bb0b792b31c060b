"""ddt evaluate scenes: SceneEval, strict scores of pictures drawn from prompts, with every control beside them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.models import Draws, Tokenizes, codec_of, computed, described, need, prefixes_of
from ddt_apps.evaluation.page import SHOWN, Page, Table, against, marked, spread
from ddt_apps.evaluation.scores import ERROR, Scores, shown, versions
from ddt_apps.evaluation.searching import Searching, SearchSettings
from ddt_apps.features import clip_score
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import grid, note, section
from ddt_data import Judge, Prompt, Seen, Verdict, level_config, load_prompts, render, scene_for, verdict
from ddt_data.sceneeval.judge import judge_hash
from ddt_data.sceneeval.prompts import canvas_of, prompts_hash
from ddt_data.sceneeval.verdicts import background_of
from ddt_llm import Denoising
from ddt_tokenizer.images import to_tensor, to_uint8
from ddt_tokenizer.limits import NonNegativeFloat, PositiveInt, Seed, check_settings
from ddt_tokenizer.precision import Precision

OVERALL = "overall_by_split.all"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `ddt evaluate scenes`."""

    level: str = "standard"  # tiny (32 px, the demo's), standard (64 px) or hard (crowds, sizes, "between")
    pictures: PositiveInt = 4  # for each prompt
    seed: Seed = 0
    judge: str = "a"  # an embedded judge or a file; its verdict is the score
    second_judge: str = "b"  # only for the agreement
    guidance: NonNegativeFloat = 1.5  # of drawing, for runs of ours
    temperature: NonNegativeFloat = 0.7
    precision: Precision = "32"  # in which a run of ours computes: 32 or bf16
    search: SearchSettings | None = None  # draws several pictures and takes the best: search.branch=8; null, one
    denoising: Denoising | None = None  # how a run of `ddt adapt` draws: denoising.steps=8; null, id by id
    backgrounds: str | None = None  # folder of pictures to put behind the real scenes of the controls
    clip: str | None = None  # folder of a transformers CLIP model, for the CLIP-score

    def __post_init__(self):
        check_settings(self)
        level_config(self.level)

    @property
    def first_seed(self) -> int:
        """Seed of the first picture."""
        return self.seed * 1_000_003 % 2**63


@dataclass
class Judged:
    """What the page shows: pictures uint8 [N, H, W, 3] with their prompts and verdicts, and those of backgrounds."""

    prompts: list[Prompt]
    pictures: np.ndarray
    verdicts: list[Verdict]
    backgrounds: list[tuple[np.ndarray, str, Verdict]]  # other pictures with their prompts: only the background counts


def evaluate(model: Draws, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Judged]:
    """Score a model that draws.

    The score of a category is the share of right pictures, Overall the mean of the six. Beside it, on the same prompts:
    real renders (the judge's ceiling, by both judges), the renders through the model's tokenizer (its ceiling, also
    from the n coarsest ids), the pictures scored against other prompts of their category (chance), and how often the
    two judges agree. And easier: how often the background is the one that a prompt names.

    Args:
        model: Draws; with a `codec`, the tokenizer's ceilings are measured too.
        settings: What to measure.
        name: Of the model, for tables.

    Returns:
        The scores, and the pictures with their verdicts.

    Raises:
        ValueError: If the model cannot draw, or draws pictures that are not square.
    """
    need(model, "draw", "scenes")
    prompts = [p for p in load_prompts(settings.level) for _ in range(settings.pictures)]
    canvas = canvas_of(settings.level)
    judge, second = Judge.from_pretrained(settings.judge), Judge.from_pretrained(settings.second_judge)
    texts = [prompt.text for prompt in prompts]
    draws = model if settings.search is None else Searching(model, settings.search, settings.level, settings.judge)
    pictures = _drawn(draws, texts, settings)
    passes = getattr(model, "passes", [])[-len(prompts) :]
    side = pictures.shape[1]
    if pictures.shape[2] != side:
        raise ValueError(f"the model drew pictures of {pictures.shape[2]} x {side} pixels; SceneEval needs squares")

    seen = read(judge, pictures, canvas)
    verdicts = _verdicts(prompts, seen)
    second_verdicts = _verdicts(prompts, read(second, pictures, canvas))
    real = real_pictures(prompts, settings, side)
    real_verdicts = [_verdicts(prompts, read(j, real, canvas)) for j in (judge, second)]
    backgrounds = _backgrounds(model, settings)
    grounds = len(level_config(settings.level).backgrounds)
    scores = summary(prompts, verdicts) | {
        **_by_prompt("best_of_pictures", [100.0 * v.right for v in verdicts], settings.pictures, np.max),
        **_count_error(prompts, seen, settings.pictures),
        **_by_prompt("background_as_asked", [100.0 * v.right for *_, v in backgrounds], grounds),
    }
    second_summary = summary(prompts, second_verdicts)
    scores |= {"second_judge_overall": second_summary["overall"]}
    scores |= {"second_judge_overall" + ERROR: second_summary["standard_error"]}
    if settings.search is not None:
        scores["verifier_calls"] = settings.search.calls  # for a picture
    if passes:
        scores["passes"] = sum(passes) / len(passes)  # of the network, for a picture
    if settings.clip:
        scores["clip_score"] = clip_score(settings.clip, to_tensor(pictures), texts)
    controls: dict[str, Any] = {
        "real": summary(prompts, real_verdicts[0]),
        "real_second_judge": summary(prompts, real_verdicts[1]),
        "shuffled_prompts": summary(prompts, _verdicts(other_prompts(prompts, settings.pictures), seen)),
        "judges_agree": {
            **_agreement("drawn", verdicts, second_verdicts, settings.pictures),
            **_agreement("real", *real_verdicts, settings.pictures),
        },
        "any_background": {"background_as_asked": 100 / grounds},
    }
    if (codec := codec_of(model)) is not None:
        controls |= _ceilings(codec, prompts, real, judge, canvas)
    protocol = _protocol(settings, side) | computed(model)
    found = Scores("scenes", described(draws, name), protocol, scores, controls)
    return found, Judged(prompts, pictures, verdicts, backgrounds)


def _drawn(model: Draws, texts: Sequence[str], settings: Settings) -> np.ndarray:
    draw = model.draw
    return in_batches("draw", len(texts), lambda rows: to_uint8(draw(texts[rows], settings.first_seed + rows.start)))


def _verdicts(prompts: Sequence[Prompt], seen: Sequence[list[Seen]]) -> list[Verdict]:
    return [verdict(prompt, things) for prompt, things in zip(prompts, seen, strict=True)]


def _protocol(settings: Settings, side: int) -> dict[str, Any]:
    return {
        "level": settings.level,
        "prompts": prompts_hash(settings.level),
        "pictures": settings.pictures,
        "seed": settings.seed,
        "image_size": side,
        "resize": f"bicubic, antialiased, to {canvas_of(settings.level)} px",
        "judge": judge_hash(settings.judge),
        "second_judge": judge_hash(settings.second_judge),
        "backgrounds": settings.backgrounds,
        "clip": settings.clip,
        "versions": versions(),
    }


def real_pictures(prompts: Sequence[Prompt], settings: Settings, side: int) -> np.ndarray:
    """Render a scene for each prompt, another one each time the prompt comes."""
    config = replace(level_config(settings.level), image_size=side)
    behind = _behind(settings.backgrounds, side)

    def draw(row: int, prompt: Prompt) -> np.ndarray:
        scene = scene_for(prompt, config, seed=settings.first_seed + row)
        return render(scene, config, behind[row % len(behind)] if behind else None)

    return np.stack([draw(row, prompt) for row, prompt in enumerate(prompts)])


def _behind(folder: str | None, side: int) -> list[np.ndarray]:
    if folder is None:
        return []
    from ddt_data import load_image
    from ddt_data.readers.listing import find_pictures

    if not Path(folder).is_dir() or not (paths := find_pictures(Path(folder))):
        raise FileNotFoundError(f"{folder}: no folder with pictures to put behind scenes")
    return [load_image(path, side) for path in paths]


def other_prompts(prompts: Sequence[Prompt], pictures: int) -> list[Prompt]:
    """Return for each prompt another one of its category, half the category away."""
    by_category: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_category.setdefault(prompt.category, []).append(row)
    others = list(prompts)
    for rows in by_category.values():
        step = len(rows) // pictures // 2 * pictures
        for i, row in enumerate(rows):
            others[row] = prompts[rows[(i + step) % len(rows)]]
    return others


def summary(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> Figures:
    """Return percent right by category, all and on seen and unseen combinations, and their means over the categories.

    Standard errors take the pictures of one prompt as one draw; `standard_error` is that of `overall`.
    """
    rights: dict[Prompt, list[bool]] = {}
    for prompt, given in zip(prompts, verdicts, strict=True):
        rights.setdefault(prompt, []).append(given.right)
    table: dict[str, Figures] = {}
    variances: dict[str, Figures] = {}
    for category in dict.fromkeys(prompt.category for prompt in prompts):
        here = [prompt for prompt in rights if prompt.category == category]
        columns = {"all": here, "seen": [p for p in here if p.seen], "unseen": [p for p in here if not p.seen]}
        columns = {column: [rights[prompt] for prompt in some] for column, some in columns.items() if some}
        table[category] = {c: 100 * sum(map(sum, some)) / sum(map(len, some)) for c, some in columns.items()}
        variances[category] = {c: float(np.var([np.mean(r) for r in some])) / len(some) for c, some in columns.items()}
    overall, errors = {}, {}
    for column in ("all", "seen", "unseen"):
        having = [category for category, row in table.items() if column in row]
        if having:
            overall[column] = float(np.mean([table[category][column] for category in having]))
            errors[column] = 100 * math.sqrt(sum(variances[category][column] for category in having)) / len(having)
    return {
        "overall": overall["all"],
        "standard_error": errors["all"],
        "overall_by_split": overall,
        "overall_by_split" + ERROR: errors,
        "categories": table,
        "categories" + ERROR: {
            category: {column: 100 * math.sqrt(v) for column, v in row.items()} for category, row in variances.items()
        },
    }


def _by_prompt(name: str, values: Sequence[float], pictures: int, join: Callable = np.mean) -> Figures:
    """Mean over prompts of what `join` makes of the values of each; those of a prompt lie side by side."""
    return mean_of(name, join(np.reshape(values, (-1, pictures)), axis=1).tolist())


def _count_error(prompts: Sequence[Prompt], seen: Sequence[list[Seen]], pictures: int) -> Figures:
    """Mean distance between the number of things asked for and drawn, over counting prompts."""
    errors = [
        float(abs(Counter(thing.noun for thing in things)[prompt.asked[0].noun] - prompt.asked[0].count))
        for prompt, things in zip(prompts, seen, strict=True)
        if prompt.category == "counting"
    ]
    return _by_prompt("count_error", errors, pictures) if errors else {"count_error": None}


def _agreement(name: str, first: Sequence[Verdict], second: Sequence[Verdict], pictures: int) -> Figures:
    """Percent of pictures on which two judges give the same verdict."""
    return _by_prompt(name, [100.0 * (a.right == b.right) for a, b in zip(first, second, strict=True)], pictures)


def _backgrounds(model: Draws, settings: Settings) -> list[tuple[np.ndarray, str, Verdict]]:
    """Draw each prompt of the first category on each background, those of a prompt side by side."""
    prompts, names = load_prompts(settings.level), level_config(settings.level).backgrounds
    asked = [(p.text, name) for p in prompts if p.category == prompts[0].category for name in names]
    texts = [f"{text} on a {name} background" for text, name in asked]
    pictures = _drawn(model, texts, settings)
    found = [background_of(picture) for picture in pictures]
    verdicts = [Verdict(f == a, "" if f == a else f"it is {f}") for f, (_, a) in zip(found, asked, strict=True)]
    return list(zip(pictures, texts, verdicts, strict=True))


def _ceilings(
    codec: Tokenizes, prompts: Sequence[Prompt], real: np.ndarray, judge: Judge, canvas: int
) -> dict[str, Figures]:
    """Score real renders after encoding and decoding; Overall also from the n coarsest ids."""
    ids = in_batches("encode", len(real), lambda rows: codec.encode(to_tensor(real[rows])))

    def scored(**settings: int) -> Figures:
        drawn = in_batches("decode", len(ids), lambda rows: to_uint8(codec.decode(ids[rows], **settings)))
        return summary(prompts, _verdicts(prompts, read(judge, drawn, canvas)))

    whole = scored()
    prefixes = {str(n): scored(keep_tokens=n) for n in prefixes_of(codec)} | {str(codec.num_tokens): whole}
    return {
        "tokenizer": whole,
        "tokenizer_prefixes": {n: found["overall"] for n, found in prefixes.items()},
        "tokenizer_prefixes" + ERROR: {n: found["standard_error"] for n, found in prefixes.items()},
    }


def page(scores: Scores, judged: Judged) -> Page:
    """Show the table of SceneEval with every control, what the tokenizer keeps, and right and wrong pictures."""
    figures, controls = scores.scores, scores.controls
    sections = []
    if controls["real"]["overall"] < 97:
        sections.append(section("Careful", "", note("The judge is right on fewer than 97 % of real scenes here.")))
    if len(prefixes := controls.get("tokenizer_prefixes", {})) > 1:
        curve = [float(n) for n in prefixes], list(prefixes.values())
        sections.append(
            section(
                "What the tokenizer keeps",
                "Overall of real scenes drawn again from their n coarsest ids; no model does better with it.",
                line_chart({"ceiling": curve}, "ids kept, from the coarse end", "% right", markers=True),
            )
        )
    for category in figures["categories"]:
        rows = [i for i, prompt in enumerate(judged.prompts) if prompt.category == category]
        for right, title in ((True, "right"), (False, "wrong")):
            cells = [
                (judged.pictures[i], marked(right, judged.prompts[i].text, judged.verdicts[i].why))
                for i in spread([i for i in rows if judged.verdicts[i].right == right])
            ]
            if cells:
                sections.append(section(f"{category}: {title}", "", grid(cells)))
    some = [judged.backgrounds[i] for i in spread(range(len(judged.backgrounds)), 2 * SHOWN)]
    cells = [(picture, marked(v.right, text, v.why)) for picture, text, v in some]
    sections.append(
        section("Backgrounds", "Whether the background is the one asked for; the thing is not judged.", grid(cells))
    )
    return Page(
        title="Text to image",
        intro=f"SceneEval, level {scores.protocol['level']}: {len(judged.prompts)} pictures drawn from fixed prompts.",
        metrics=[
            against(scores, OVERALL, "shuffled_prompts", "Drawn exactly as asked", "for other prompts", "%"),
            against(scores, "background_as_asked", "any_background", "Background as asked", "always the same", "%"),
        ],
        about=(
            "Strict: exactly the things asked for, nothing else, in the colours, sizes and places asked for. "
            "Unseen: combinations that training never shows. \u00b1 one standard error. The judge sees this vocabulary "
            "only, so figures compare models trained on these scenes with one another, never with published GenEval "
            "figures."
        ),
        tables=[_by_category(scores), _also(figures, controls)],
        sections=sections,
    )


def _by_category(scores: Scores) -> Table:
    """The table of SceneEval: the model and every control, by category."""
    categories = list(scores.scores["categories"])

    def row(name: str, figures: Figures, column: str = "all") -> list[str]:
        cells = [shown(figures, f"categories.{category}.{column}") for category in categories]
        return [name, *cells, shown(figures, f"overall_by_split.{column}")]

    rows = [row(f"model, {column}", scores.scores, column) for column in ("all", "seen", "unseen")]
    names = {
        "shuffled_prompts": "other prompts (chance)",
        "tokenizer": "real scenes through the tokenizer (its ceiling)",
        "real": "real scenes (the judge's ceiling)",
        "real_second_judge": "real scenes, second judge",
    }
    rows += [row(text, scores.controls[key]) for key, text in names.items() if key in scores.controls]
    return ["percent right", *categories, "Overall"], rows


def _also(figures: Figures, controls: dict[str, Figures]) -> Table:
    agree, chance = controls["judges_agree"], controls["any_background"]
    rows = [
        ["prompts with a right picture among theirs, %", shown(figures, "best_of_pictures")],
        ["background drawn as asked, %", shown(figures, "background_as_asked")],
        ["the same, of any one background (chance)", shown(chance, "background_as_asked")],
        ["Overall by the second judge", shown(figures, "second_judge_overall")],
        ["judges agree on drawn pictures, %", shown(agree, "drawn")],
        ["judges agree on real pictures, %", shown(agree, "real")],
        ["mean count error, counting prompts", shown(figures, "count_error", 2)],
    ]
    prefixes = controls.get("tokenizer_prefixes", {})
    rows += [
        [f"the tokenizer's ceiling from its coarsest ids, {n}", shown(controls, f"tokenizer_prefixes.{n}")]
        for n in prefixes
    ]
    return ["also", "value"], rows
