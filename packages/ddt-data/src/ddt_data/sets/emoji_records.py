"""Records of emoji: pictures with captions and questions, and pairs of drawings that make exact edits."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path

from ddt_data.readers.records import Record
from ddt_data.scenes.splits import is_held_out, stable
from ddt_data.sets.emoji import NAMES, STYLES, Drawing, load_concepts, load_style, render_drawing
from ddt_data.sets.pinned import Split
from ddt_data.shards.building import Progress

GENDERS = (("woman", "man", "make it a {}"), ("women", "men", "make them {}"), ("girl", "boy", "make it a {}"))
Pair = tuple[Drawing, Drawing, str]  # source, target, instruction


def load_emoji(
    image_size: int = 64,
    share_alike: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Split]:
    """Fetch and draw named emoji in nine styles, with `share_alike` eleven: 19,957 pictures, or 24,856.

    `train` and `held-out` (one emoji in ten, by code point) hold each drawing once, of people one skin tone for each
    person and style; `tones` and `tones-held-out` the other skin tones; `edits` and `edits-held-out` pairs of drawings.

    Raises:
        ValueError: If a package cannot be had, or resvg_py (extra `[fetch]`) is missing.
    """
    styles = [style for style, pinned in STYLES.items() if share_alike or not pinned.share_alike]
    concepts = load_concepts(cache)
    drawings = [drawing for style in styles for drawing in load_style(style, concepts, share_alike, cache)]
    for number, picture in enumerate(_draw(drawings, image_size, workers)):
        drawings[number] = replace(drawings[number], data=picture)
        if progress:
            progress(number + 1, len(drawings))
    splits = {}
    for held_out, ending in ((False, ""), (True, "-held-out")):
        # By the emoji without its tone: all its styles and tones fall on one side, and adding a style moves none.
        here = [drawing for drawing in drawings if is_held_out(f"emoji {drawing.concept.base}") == held_out]
        for name, spare in (("held-out" if held_out else "train", False), (f"tones{ending}", True)):
            splits[name] = _split(picture_record(drawing) for drawing in here if is_spare(drawing) == spare)
        splits[f"edits{ending}"] = _split(edit_records(here))
    return splits


def _draw(drawings: list[Drawing], size: int, workers: int) -> Iterator[bytes]:
    draw = partial(render_drawing, size=size)
    if workers == 1:
        yield from map(draw, drawings)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, drawings, chunksize=64)


def _split(records: Iterable[Record]) -> Split:
    found = list(records)
    counts = Counter(STYLES[record.meta["style"]] for record in found)
    return Split(found, {NAMES: len(found), **counts})


def is_spare(drawing: Drawing) -> bool:
    """Return whether a drawing is one of the many skin tones of a person, all but one for each person and style.

    People with tones are six in ten of all emoji; this is what caps them.
    """
    concept = drawing.concept
    if not concept.tone:
        return False
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    return concept.tone != tones[stable(f"tone {drawing.style} {concept.base}", len(tones))]


def describe(drawing: Drawing) -> str:
    """Write a caption: mostly the name, sometimes with the style, sometimes keywords alone.

    Example:
        >>> from ddt_data.sets.emoji import Concept
        >>> describe(Drawing(Concept("1f98a", "1f98a", "fox", "", ("animal",), "animals nature"), "Noto", ""))
        'fox, in the Noto style'
    """
    concept = drawing.concept
    turn = stable(f"caption {drawing.style} {concept.code}", 20)
    if turn < 3 and len(concept.keywords) >= 3:
        first = stable(f"keywords {drawing.style} {concept.code}", len(concept.keywords) - 2)
        return f"a picture tagged {', '.join(concept.keywords[first : first + 3])}"
    name = concept.label.replace(": ", ", ")
    return f"{name}, in the {drawing.style} style" if turn < 8 else name


def picture_record(drawing: Drawing) -> Record:
    """Return the record of a drawing, whose data is an encoded picture."""
    concept = drawing.concept
    about = {"label": concept.label, "style": drawing.style, "group": concept.group}
    questions = [
        {"kind": "name", "question": "what is this?", "answer": concept.label},
        {"kind": "group", "question": "which group does it belong to?", "answer": concept.group},
        {"kind": "style", "question": "in which style is it drawn?", "answer": drawing.style},
    ]
    meta = {**about, "keywords": list(concept.keywords), "questions": questions}
    return Record(drawing.name, image=drawing.data, text=describe(drawing), meta=meta)


def edit_records(drawings: list[Drawing]) -> Iterator[Record]:
    """Yield edits between drawings: of the skin tone, between woman and man, and of the style."""
    for find in (_tone_pairs, _gender_pairs, _style_pairs):
        yield from starmap(_edit, find(drawings))


def _tone_pairs(drawings: list[Drawing]) -> Iterator[Pair]:
    """Yield for each person and style: from the plain drawing to a tone, and from one tone to another."""
    plain = {drawing.name: drawing for drawing in drawings}
    toned: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        if drawing.concept.tone and " and " not in drawing.concept.tone:
            toned[drawing.style, drawing.concept.base].append(drawing)
    for (style, base), tones in toned.items():
        start = stable(f"tones {style} {base}", len(tones))
        first, *others = tones[start:] + tones[:start]
        if source := plain.get(f"{style}/{base}"):
            yield source, first, f"change the skin tone to {first.concept.tone}"
        if others:
            target = others[1] if len(others) > 1 else first
            yield others[0], target, f"change the skin tone to {target.concept.tone}"


def _gender_pairs(drawings: list[Drawing]) -> Iterator[Pair]:
    named = {(drawing.style, drawing.concept.label): drawing for drawing in drawings if not drawing.concept.tone}
    for (style, label), drawing in named.items():
        for one, other, instruction in GENDERS:
            swapped = " ".join(other if word == one else word for word in label.split())
            if one in label.split() and (pair := named.get((style, swapped))):
                yield drawing, pair, instruction.format(other)
                yield pair, drawing, instruction.format(one)


def _style_pairs(drawings: list[Drawing]) -> Iterator[Pair]:
    drawn = {drawing.name: drawing for drawing in drawings}
    styles = sorted({drawing.style for drawing in drawings})
    for drawing in drawings:
        if not drawing.concept.tone:
            first = stable(f"style {drawing.style} {drawing.concept.code}", len(styles))
            for other in styles[first:] + styles[:first]:
                if other != drawing.style and (pair := drawn.get(f"{other}/{drawing.concept.code}")):
                    yield drawing, pair, f"redraw it in the {other} style"
                    break


def _edit(source: Drawing, target: Drawing, instruction: str) -> Record:
    kind = "style" if source.style != target.style else "tone" if target.concept.tone else "gender"
    edit = {"kind": kind, "instruction": instruction, "caption": describe(target)}
    return Record(
        f"{source.name} to {target.name}",
        image=source.data,
        target=target.data,
        text=describe(source),
        meta={"edit": edit, "label": source.concept.label, "style": source.style},
    )
