"""ddt evaluate language: bits for each id of a picture given its caption, and what the caption is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import HeldOutScene, HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.models import Foretells, codec_of, computed, described, need
from ddt_apps.evaluation.page import SHOWN, Page, against, side_by_side, spread
from ddt_apps.evaluation.scores import Scores, shown
from ddt_apps.evaluation.tokens import eighths
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import grid, section
from ddt_data import SceneConfig, SceneGenerator, render
from ddt_tokenizer.images import to_tensor

ALL = "bits_per_token.all"
LEARNED_FROM = 4000  # training scenes whose ids are counted for the unigrams


@dataclass(frozen=True, kw_only=True)
class Settings(HeldOutSettings):
    """Settings of `ddt evaluate language`."""


@dataclass
class Foretold:
    """What the page shows: pictures uint8 [N, H, W, 3], captions, and bits [N, K] by what was known."""

    pictures: np.ndarray
    captions: list[str]
    bits: dict[str, Tensor]


def evaluate(
    model: Foretells,
    settings: Settings = Settings(),
    name: str = "model",
    untrained: Foretells | None = None,
) -> tuple[Scores, Foretold]:
    """Score how well a language model foretells the ids of held-out pictures from their captions.

    Bits of an id are -log2 p(id | ids before it, caption), means over the ids of a picture, then over pictures. Beside
    them the same given another picture's caption and no caption, unigrams (how often an id came at its place in 4,000
    training scenes), and the model before training. `caption_worth` is what the right caption saves over another's,
    `bits_by_eighth` are means over eighths of the ids, from coarse to fine whatever the order of writing.

    Args:
        model: With `bits`, and a `codec` that writes ids.
        settings: Which scenes.
        name: Of the model, for tables.
        untrained: The same model before training, where it can be built.

    Raises:
        ValueError: If the model cannot foretell, or has no tokenizer.
    """
    need(model, "bits", "language")
    if (codec := codec_of(model)) is None:
        raise ValueError(f"evaluate language needs a model with a codec; {type(model).__name__} has none")
    scenes, config = scenes_for(codec, settings)
    pictures = np.stack([render(s.scene, config) for s in scenes])
    images, captions = to_tensor(pictures), [s.describe(config) for s in scenes]
    ids = in_batches("encode", len(images), lambda r: codec.encode(images[r]))
    others = other_captions(captions)
    bits = {
        "caption": _bits(model, ids, captions),
        "another_caption": _bits(model, ids, others),
        "no_caption": _bits(model, ids, [""] * len(ids)),
        "unigrams": unigram_bits(_training_ids(codec, config), ids, codec.codebook_size),
    }
    if untrained is not None:
        bits["untrained"] = _bits(untrained, ids, captions)
    measured = {name: _measured(each, scenes) for name, each in bits.items()}
    worth = (bits["another_caption"] - bits["caption"]).mean(1)
    scores = measured.pop("caption") | by_split("caption_worth", worth.tolist(), scenes)
    protocol = settings.protocol(config.image_size) | computed(model)
    return Scores("language", described(model, name), protocol, scores, measured), Foretold(pictures, captions, bits)


def other_captions(captions: list[str]) -> list[str]:
    """Return for each caption the next one that says something else, or itself if all say the same.

    Example:
        >>> other_captions(["a fox", "a fox", "a bell"])
        ['a bell', 'a bell', 'a fox']
    """
    following = [captions[row + 1 :] + captions[:row] for row in range(len(captions))]
    return [next((o for o in others if o != own), own) for own, others in zip(captions, following, strict=True)]


def unigram_bits(counted: Tensor, ids: Tensor, codebook_size: int) -> Tensor:
    """Return the bits of ids [N, K] by how often each id comes at its place in the ids `counted` [M, K]: [N, K].

    With n_k(v) of M ids at place k equal to v, p_k(v) = (n_k(v) + 0.1) / (M + 0.1 V).
    """
    counts = torch.stack([torch.bincount(column, minlength=codebook_size) for column in counted.T]).double() + 0.1
    return -(counts / counts.sum(1, keepdim=True)).log2().gather(1, ids.T).T


def _bits(model: Foretells, ids: Tensor, captions: Sequence[str]) -> Tensor:
    return in_batches("foretell", len(ids), lambda r: model.bits(ids[r], captions[r]))


def _training_ids(codec: Any, config: SceneConfig) -> Tensor:
    generator = SceneGenerator(config, seed=0)

    def encoded(rows: slice) -> Tensor:
        return codec.encode(to_tensor([render(generator[i], config) for i in range(rows.start, rows.stop)]))

    return in_batches("training ids", LEARNED_FROM, encoded)


def _measured(bits: Tensor, scenes: Sequence[HeldOutScene]) -> Figures:
    figures = by_split("bits_per_token", bits.mean(1).tolist(), scenes)
    return figures | mean_of("bits_per_image", bits.sum(1).tolist()) | {"bits_by_eighth": eighths(bits.mean(0))}


def page(scores: Scores, foretold: Foretold) -> Page:
    """Show bits by what was known, at each place too, and pictures from the least to the most foreseeable."""
    names = {
        "caption": "its caption",
        "another_caption": "another picture's caption",
        "no_caption": "no caption",
        "unigrams": "unigrams: how often each id comes there",
        "untrained": "its caption, before training",
    }
    given = {names[known]: found for known, found in {"caption": scores.scores, **scores.controls}.items()}
    columns = {"bits an id": ALL, "seen": "bits_per_token.seen", "unseen": "bits_per_token.unseen"}
    header, rows = side_by_side(given, columns | {"bits an image": "bits_per_image"}, digits=3)
    worth = [shown(scores.scores, f"caption_worth.{split}", 3) for split in ("all", "seen", "unseen")]
    rows.append(["the right caption saves over another", *worth, "-"])
    places = [float(k) for k in range(1, foretold.bits["caption"].shape[1] + 1)]
    curves = {names[known]: (places, bits.mean(0).flip(0).tolist()) for known, bits in foretold.bits.items()}
    each = foretold.bits["caption"].mean(1).tolist()
    some = spread(sorted(range(len(each)), key=lambda i: -each[i]), 2 * SHOWN)
    cells = [(foretold.pictures[i], f"{each[i]:.1f} bits: {foretold.captions[i]}") for i in some]
    return Page(
        title="Ids as a language",
        intro=f"How well {len(each)} held-out pictures are foretold, id by id, from their captions.",
        metrics=[
            against(scores, ALL, control, "Bits an id, from its caption", baseline, "bits", lower=True)
            for control, baseline in (("unigrams", "how often each comes"), ("another_caption", "another caption"))
        ],
        about=(
            "Bits of an id given the ids written before it and what the row names; less is better. \u00b1 one standard "
            "error; that of what the caption saves is of the differences within a picture."
        ),
        tables=[
            (header, rows),
            (
                ["bits an id, by eighth of the ids from coarse to fine", *map(str, range(1, 9))],
                [
                    [what, *("-" if value is None else f"{value:.2f}" for value in found["bits_by_eighth"])]
                    for what, found in given.items()
                ],
            ),
        ],
        sections=[
            section(
                "Id by id",
                "From the coarsest id to the finest. Where the curves lie apart, the caption decides what is drawn.",
                line_chart(curves, "id, from the coarse end", "bits", markers=len(places) <= 32),
            ),
            section("From the least to the most foreseeable", "Bits an id, given the caption.", grid(cells)),
        ],
    )
