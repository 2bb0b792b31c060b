"""Read edit triples (source, instruction, target): a list of ours, MagicBrush, or InstructPix2Pix."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.listing import PICTURES, Listing, inside, name_in
from ddt_data.readers.records import Record, Refused, one_line, reason
from ddt_data.readers.tables import read_rows
from ddt_data.readers.text import decode, parse_object, read_json

LIST, MAGICBRUSH, PAIRS = "edits.jsonl", "edit_turns.json", "prompt.json"  # in any case
Pair = tuple[str, list[str]]  # paths of a prompt and of its source pictures


def read_edits(folder: str | Path, pairs: Sequence[Pair] | None = None) -> Iterator[Record | Refused]:
    """Yield edits: `image` is the source, `target` the result, `meta["edit"]` the instruction.

    Three layouts, told apart by what is there:
    `edits.jsonl` with lines {"source", "target", "instruction"} and, if known, "caption" and "target_caption";
    `edit_turns.json` and `images/<id>/`, as MagicBrush comes;
    `<number>/prompt.json` beside `<seed>_0.jpg` and `<seed>_1.jpg`, as InstructPix2Pix comes.

    Args:
        folder: That of the edits, or the list itself.
        pairs: What `find_pairs` has found there, if it is listed already.

    Raises:
        FileNotFoundError: If the folder is laid out in none of these ways.
        ValueError: If the list cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = [(folder / name).write_bytes(b"...") for name in ("a.png", "b.png")]
        >>> line = '{"source": "a.png", "target": "b.png", "instruction": "make it blue"}'
        >>> _ = (folder / "edits.jsonl").write_text(line)
        >>> next(read_edits(folder)).meta["edit"]["instruction"]
        'make it blue'
    """
    folder = Path(folder)
    file = folder if folder.is_file() else None if pairs else find_edits(Listing(folder))
    if file and file.name.lower() == MAGICBRUSH:
        yield from _magicbrush(file)
    elif file:
        yield from _listed(file)
    elif pairs := pairs or find_pairs(Listing(folder)):
        yield from _pairs(folder, pairs)
    else:
        raise FileNotFoundError(f"{folder} holds neither {LIST}, {MAGICBRUSH} nor */{PAIRS}; write an {LIST}")


def find_edits(listing: Listing) -> Path | None:
    """Return the file of a folder that lists its edits, if one does."""
    lists = {name.lower(): name for name in listing.top[1] if name.lower() in (LIST, MAGICBRUSH)}
    name = lists.get(LIST) or lists.get(MAGICBRUSH)
    return listing.folder / name if name else None


def find_pairs(listing: Listing) -> list[Pair]:
    """Return each prompt with the source pictures beside it, as InstructPix2Pix comes; none in any other layout."""
    ends = [Path(file) for file in listing.files if file.lower().endswith(PAIRS)]
    prompts = [path for path in ends if path.name.lower() == PAIRS and path.parent.parent == listing.folder]
    sources = defaultdict(list)
    for file in listing.files if prompts else ():
        name, kind = os.path.splitext(file)
        if name.endswith("_0") and kind.lower() in PICTURES:
            sources[os.path.dirname(file)].append(file)
    return [(str(prompt), sources[str(prompt.parent)]) for prompt in prompts]


def target_of(source: str) -> str:
    """Return the path of the picture that an edit of InstructPix2Pix leads to.

    Example:
        >>> target_of("0001/11_0.jpg")
        '0001/11_1.jpg'
    """
    name, kind = os.path.splitext(source)
    return f"{name[:-1]}1{kind}"


def _listed(file: Path) -> Iterator[Record | Refused]:
    for row in read_rows(file):
        if isinstance(row, Refused):
            yield row
            continue
        try:
            yield _edit(row[0], file.parent, row[1])
        except ValueError as error:
            yield Refused(row[0], reason(error))


def _magicbrush(file: Path) -> Iterator[Record | Refused]:
    turns = read_json(file)
    if not isinstance(turns, list):
        raise ValueError(f"{file}: no list of edits, as MagicBrush has them; correct or rename it")
    for number, turn in enumerate(turns):
        name = f"{file.name}, entry {number}"
        try:
            if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("input", "output")):
                raise ValueError('not {"input", "output", "instruction"}; correct the entry')
            place = f"images/{turn['input'].split('-')[0]}"
            pair = {"source": f"{place}/{turn['input']}", "target": f"{place}/{turn['output']}"}
            yield _edit(name, file.parent, {**pair, "instruction": turn.get("instruction")})
        except ValueError as error:
            yield Refused(name, reason(error))


def _pairs(folder: Path, pairs: Sequence[Pair]) -> Iterator[Record | Refused]:
    for prompt, sources in pairs:
        name = name_in(folder, Path(prompt))
        try:
            if not Path(prompt).is_file():
                raise ValueError("is no file, or a link that leads nowhere; remove it")
            words = parse_object(decode(Path(prompt).read_bytes()))
            row = {
                "instruction": words.get("edit"),
                "caption": words.get("input"),
                "target_caption": words.get("output"),
            }
            if missing := [key for key in ("edit", "input", "output") if key not in words]:
                raise ValueError(f'lacks "{missing[0]}"; add it')
            if not sources:
                raise ValueError("no pictures named <seed>_0 and <seed>_1 beside it")
        except (ValueError, OSError) as error:
            yield Refused(name, reason(error))
            continue
        for source in sources:
            pair = {"source": name_in(folder, Path(source)), "target": name_in(folder, Path(target_of(source)))}
            try:
                yield _edit(pair["source"], folder, {**pair, **row})
            except ValueError as error:
                yield Refused(pair["source"], reason(error))


def _edit(name: str, folder: Path, row: dict) -> Record:
    for key in ("source", "target", "instruction"):
        if row.get(key) is None:
            raise ValueError(f'not {{"source", "target", "instruction"}}: {key!r} is missing')
    source, target = inside(folder, row["source"]), inside(folder, row["target"])
    kind = row.get("kind", "instruction")
    if not isinstance(kind, str):
        raise ValueError('its "kind" is no text; correct it')
    try:
        edit = {"kind": kind, "instruction": one_line(row["instruction"])}
    except ValueError as error:
        raise ValueError("its instruction is empty or no text; write one") from error
    if row.get("target_caption"):
        edit["caption"] = one_line(row["target_caption"])
    text = one_line(row["caption"]) if row.get("caption") else None
    return Record(name, image=source, target=target, text=text, meta={"edit": edit})
