"""ddt evaluate order: whether ids go from coarse to fine, and what each part of them tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.evaluation import steps
from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.heldout import HeldOutScene, HeldOutSettings, held_out_scenes, shard_pictures
from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.models import Tokenizes, codec_of, computed, described, load_model, prefixes_of
from ddt_apps.evaluation.page import Page, Table
from ddt_apps.evaluation.scores import Scores, shown, value_of
from ddt_apps.evaluation.tokens import at_noise, eighths, from_finest, locality, patch_changes
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import Metric, section, strip
from ddt_data import Judge, Seen, render
from ddt_data.sceneeval.judge import judge_hash
from ddt_data.sceneeval.prompts import canvas_of
from ddt_data.sceneeval.verdicts import background_of
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import psnr, to_tensor, to_uint8

NEAR = 0.125  # of the side, within which a thing counts as in its place
SWAPPED = 64  # pictures whose ids are exchanged, one id at a time
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels, before any shift
TELLS = ("background", "count", "place", "colour", "noun")  # in the order in which a coarse-to-fine code tells them
SHEET = 6  # pictures on the page


@dataclass(frozen=True, kw_only=True)
class Settings(HeldOutSettings):
    """Settings of `ddt evaluate order`."""

    count: int = 540  # held-out scenes, half of them with unseen combinations; and as many real ones of SceneEval
    data: str | None = None  # folder of picture shards, of which nothing is read; held-out scenes if not given
    judge: str = "a"  # embedded judge, or a file
    beside: str | None = None  # folder of another run, such as a spatial tokenizer, measured alike and shown beside


@dataclass
class Drawn:
    """What the page shows: pictures uint8 [N, H, W, 3], by what they were drawn from."""

    pictures: dict[str, np.ndarray]


def evaluate(model: Tokenizes, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Drawn]:
    """Measure the order of a tokenizer's ids with its decoder, drawing in one step unless said otherwise.

    `coarsest` and `finest` hold, for 1, 2, 4 ... K ids of either end, PSNR, the share of the variance around the mean
    picture that is explained, and what the judge reads of the picture, in percent: the background, as many things as
    there are, things in their places, and of those in their colours and with their nouns; `half_at` from how many ids
    each is told half as well as from all. `locality` is the share of what an exchanged id changes that lies in one
    patch, by eighths of the ids from coarse to fine; with it usage and entropy of codes, and `dead_positions`, which
    tell next to nothing. `noise` has the PSNR of what is made of noisy pictures with all ids, with those of k(t) and
    with none; `steps` what is drawn of SceneEval's real scenes in one step and in many (`ddt_apps.evaluation.steps`).
    Of pictures of `data` the judge reads nothing, and they are what is drawn in steps.

    Raises:
        ValueError: If the model has no tokenizer with a decoder of ours, or the pictures have another size.
    """
    codec = _codec(model)
    other = None if settings.beside is None else _codec(load_model(settings.beside, precision=settings.precision))
    if other is not None and other.image_size != codec.image_size:
        raise ValueError(
            f"beside '{settings.beside}' draws {other.image_size} px, this model {codec.image_size} px; name a run of "
            f"that size"
        )
    scenes, source = None, {}
    if settings.data is None:
        scenes, config = held_out_scenes(settings.level, codec.image_size, settings.count, settings.seed)
        originals = np.stack([render(scene.scene, config) for scene in scenes])
    else:
        originals, what = shard_pictures(settings.data, codec.image_size, settings.count)
        source = {"data": what, "count": len(originals)}
    images = to_tensor(originals)
    scores, pictures = _measure(codec, scenes, originals, settings)
    mean = images.mean(0, keepdim=True).expand_as(images)
    controls: dict[str, Figures] = {"mean_picture": mean_of("psnr", psnr(mean, images))}
    if other is not None:
        print(f"beside it, {settings.beside}", flush=True)
        controls["beside"] = {"run": settings.beside, **_measure(other, scenes, originals, settings)[0]}
    protocol = {
        **settings.protocol(codec.image_size),
        **source,
        "judge": judge_hash(settings.judge),
        "drawn": "in one step, 8-bit pictures",
        "swapped": SWAPPED,
        "steps": f"{'the same' if source else f'real scenes of SceneEval {settings.level}'}; guided: {steps.GUIDED}",
        **computed(model),
    }
    return Scores("order", described(model, name), protocol, scores, controls), Drawn(
        {"original": originals} | pictures
    )


def _codec(model: Any) -> Codec:
    codec = codec_of(model)
    if codec is None or not hasattr(codec, "decoder"):
        raise ValueError("evaluate order needs a run of ddt train-tokenizer, or one that was trained on its ids")
    return codec


def _measure(
    codec: Codec, scenes: Sequence[HeldOutScene] | None, originals: np.ndarray, settings: Settings
) -> tuple[Figures, dict[str, np.ndarray]]:
    """Return all figures of one tokenizer, and the pictures that were drawn for them."""
    images = to_tensor(originals)
    ids = in_batches("encode", len(images), lambda rows: codec.encode(images[rows]))
    judge, canvas = Judge.from_pretrained(settings.judge), canvas_of(settings.level)
    variance = (images - images.mean(0)).square().mean().item()
    ends = {
        "coarsest": lambda rows, n: codec.decode(ids[rows], num_steps=1, keep_tokens=n),
        "finest": lambda rows, n: from_finest(codec, ids[rows], n),
    }
    pictures: dict[str, np.ndarray] = {}
    scores: Figures = {}
    for end, draw in ends.items():
        scores[end] = {}
        for n in [*prefixes_of(codec), codec.num_tokens]:
            key = "all" if n == codec.num_tokens else f"{n} {end}"
            if key not in pictures:
                made = in_batches(f"draw {key}", len(ids), lambda rows, n=n, draw=draw: to_uint8(draw(rows, n)))
                pictures[key] = made
            drawn = to_tensor(pictures[key])
            explained = 100 * (1 - (drawn - images).square().mean().item() / variance)
            scores[end][str(n)] = mean_of("psnr", psnr(drawn, images)) | {"explained": explained}
            if scenes is not None:
                scores[end][str(n)] |= tells(scenes, pictures[key], read(judge, pictures[key], canvas))
    scores |= {name: scores["coarsest"][str(codec.num_tokens)][name] for name in ("psnr", "psnr_standard_error")}
    if scenes is not None:
        scores["half_at"] = half_at(scores["coarsest"])

    half, before = codec.num_tokens // 2, ids.roll(1, 0)
    for key, part in {"finer half of another": (0, half), "coarser half of another": (half, codec.num_tokens)}.items():
        mixed = in_batches(
            key, SHEET, lambda rows, part=part: codec.decoder.swap(ids[rows], before[rows], *part, num_steps=1)
        )
        pictures[key] = to_uint8(mixed)

    changes = patch_changes(codec, ids[:SWAPPED])
    health = codebook_health(ids, codec.tokenizer.quantizer.codebook)
    codes = torch.tensor([float(len(column.unique())) for column in ids.T])
    bits = torch.tensor(health.position_bits)
    by_position = {"locality": locality(changes), "change": changes.mean(1), "codes": codes, "bits": bits}
    scores |= {figure: eighths(values) for figure, values in by_position.items()}
    scores["usage"], scores["dead_positions"] = health.usage, health.dead_positions
    space, device = codec.decoder.latent_space, codec.decoder.codebook.device
    latents = in_batches("latents", len(images), lambda rows: space.encode(images[rows].to(device)).cpu())
    scores["noise"] = {
        str(t): {seen: _estimate(codec, latents, images, ids, t, seen) for seen in ("k(t)", "all", "none")}
        for t in TIMES
    }
    prompts = None
    if scenes is not None:
        prompts, originals = steps.asked_scenes(settings.level, codec.image_size, settings.count, settings.seed)
    scores["steps"] = steps.measure(codec, originals, judge, canvas, prompts)
    return scores, pictures


def tells(scenes: Sequence[HeldOutScene], pictures: np.ndarray, seen: Sequence[Sequence[Seen]]) -> Figures:
    """Compare what a judge sees with the truth, in percent.

    `background` and `count` are of pictures; `place` is the share of things with something seen near them, `noun` with
    something of their noun, and `colour` of tinted things with something of their colour.
    """
    right: dict[str, list[bool]] = {name: [] for name in TELLS}
    for scene, picture, things in zip((each.scene for each in scenes), pictures, seen, strict=True):
        right["background"].append(background_of(picture) == scene.background)
        right["count"].append(len(things) == len(scene.objects))
        for thing in scene.objects:
            x, y = (c / len(picture) for c in thing.centre)
            near = [each for each in things if max(abs(each.x - x), abs(each.y - y)) <= NEAR]
            right["place"].append(bool(near))
            right["noun"].append(any(each.noun == thing.noun for each in near))
            if thing.colour:
                right["colour"].append(any(each.colour == thing.colour for each in near))
    return {name: 100 * float(np.mean(values)) if values else None for name, values in right.items()}


def half_at(coarsest: Figures) -> Figures:
    """Return from how many of the coarsest ids on each of `TELLS` is half of what all ids tell, by straight lines.

    Example:
        >>> told = {"1": {"place": 40, "noun": 0}, "2": {"place": 50, "noun": 1}, "4": {"place": 60, "noun": 30}}
        >>> {name: round(n, 1) for name, n in half_at(told).items()}
        {'place': 1.0, 'noun': 3.0}
        >>> half_at({"1": {"noun": 0}, "2": {"noun": 0}})  # never told
        {}
    """
    found: Figures = {}
    counts, rows = [int(n) for n in coarsest], list(coarsest.values())
    for name in TELLS:
        half = (rows[-1].get(name) or 0) / 2
        if half:
            after = next(i for i, row in enumerate(rows) if row[name] >= half)  # at the latest that of all ids
            ends = [max(after - 1, 0), after]
            found[name] = float(np.interp(half, [rows[i][name] for i in ends], [counts[i] for i in ends]))
    return found


def _estimate(codec: Codec, latents: Tensor, images: Tensor, ids: Tensor, t: float, seen: str) -> float:
    def compare(rows: slice) -> Tensor:
        return psnr(at_noise(codec, latents[rows], ids[rows], t, seen), images[rows])

    return float(in_batches(f"noise {t}, {seen}", len(ids), compare).mean())


def page(scores: Scores, drawn: Drawn) -> Page:
    """Show pictures from either end of the ids, and what each number of them tells."""
    figures, other = scores.scores, scores.controls.get("beside")
    known = {"": figures} | ({} if other is None else {f"{other['run']}: ": other})
    curves = {
        f"{whose}{end} ids": ([float(n) for n in each[end]], [row["psnr"] for row in each[end].values()])
        for whose, each in known.items()
        for end in ("coarsest", "finest")
    }
    told = {
        name: ([float(n) for n in figures["coarsest"]], [row[name] for row in figures["coarsest"].values()])
        for name in TELLS
        if all(row.get(name) is not None for row in figures["coarsest"].values())
    }
    some = range(min(SHEET, len(drawn.pictures["original"])))
    most = f"{sorted(map(int, figures['finest']))[-2:][0]} finest"  # fewer show nothing
    on_sheet = {label: row for label, row in drawn.pictures.items() if "finest" not in label or label == most}
    what = "held-out scene" if told else "picture"
    charts = [section("Either end of the ids", "", line_chart(curves, "ids", "PSNR, dB", markers=True))]
    if told:
        chart = line_chart(told, "ids", "percent right", markers=True)
        charts.append(section("What the coarsest ids tell", "", chart))
    lines = [(f"{what} {i}", [(row[i], label) for label, row in on_sheet.items()]) for i in some]
    dead = figures["dead_positions"]
    return Page(
        title="From coarse to fine",
        intro=f"{scores.protocol['count']} {what}s, drawn from some of their ids.",
        metrics=[_eighth(figures)],
        about=(
            "Percent right by the judge, from the n coarsest ids; explained is the share of the variance around the "
            "mean picture. Eighths of the ids run from coarse to fine. At noise: PSNR of what is made of noisy "
            "pictures. Steps: pictures through their ids, of scenes real ones of SceneEval; sharpness 1 is that of the "
            f"originals, distance 0 would be alike. {100 * figures['usage']:.0f} % of the codes occur; "
            + (
                f"positions {', '.join(map(str, dead))} tell next to nothing."
                if dead
                else "every position tells something."
            )
        ),
        tables=[table for whose, each in known.items() for table in _tables(each, whose)],
        sections=[
            section(
                "Pictures",
                "From the coarsest ids, from all, from the finest; then with half of the ids of the one before.",
                strip(lines),
            ),
            *charts,
        ],
    )


def _eighth(figures: Figures) -> Metric:
    """Set an eighth of the ids, the coarsest, beside as many of the finest."""
    whole = max(map(int, figures["coarsest"]))
    n = str(2 ** (max(1, whole // 8).bit_length() - 1))
    (value, error), (other, its_error) = (value_of(figures[end][n], "psnr") for end in ("coarsest", "finest"))
    name = f"{n} of {whole} ids, the coarsest, PSNR"
    return Metric(name, value, other, f"the {n} finest", "dB", error=error, baseline_error=its_error)


def _tables(figures: Figures, whose: str) -> list[Table]:
    """Four tables: numbers of ids, eighths of them, noise, steps."""
    heads = [f"{whose}ids", "coarsest, dB", "finest, dB", "explained, %", *(f"{name}, %" for name in TELLS)]
    rows = [
        [n, f"{row['psnr']:.1f}", f"{figures['finest'][n]['psnr']:.1f}", f"{row['explained']:.0f}"]
        + ["-" if row.get(name) is None else f"{row[name]:.0f}" for name in TELLS]
        for n, row in figures["coarsest"].items()
    ]
    if halves := figures.get("half_at"):
        told = [f"{halves[name]:.1f}" if name in halves else "-" for name in TELLS]
        rows.append(["half of it at", "", "", "", *told])
    parts = [
        [name, *("-" if value is None else f"{value:.3g}" for value in figures[figure])]
        for figure, name in {
            "locality": "share of a swap's change in one patch",
            "change": "change by a swap",
            "codes": "codes at a position",
            "bits": "bits at a position",
        }.items()
    ]
    noise = [[t, *(f"{row[ids]:.1f}" for ids in ("k(t)", "all", "none"))] for t, row in figures["noise"].items()]
    drawn = [
        [way, shown(row, "psnr"), shown(row, "overall"), f"{row['sharpness']:.2f}", f"{row['distance']:.3g}"]
        for way, row in figures["steps"].items()
    ]
    return [
        (heads, rows),
        ([f"{whose}eighth of the ids", *map(str, range(1, 9))], parts),
        ([f"{whose}noise", "k(t) ids", "all ids", "no ids"], noise),
        ([f"{whose}drawn in", "PSNR, dB", "right, %", "sharpness", "distance"], drawn),
    ]
