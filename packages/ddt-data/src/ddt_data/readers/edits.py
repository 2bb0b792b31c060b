"""Read edit triples (source, instruction, target): a list of ours, MagicBrush, or InstructPix2Pix."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.captions import inside, read_rows
from ddt_data.readers.coco import read_json
from ddt_data.readers.folder import Listing, name_in
from ddt_data.readers.records import Record, Refused, one_line

LIST, MAGICBRUSH, PAIRS = "edits.jsonl", "edit_turns.json", "prompt.json"
Pair = tuple[str, list[str]]  # paths of a prompt and of its source pictures


def read_edits(folder: str | Path, pairs: Sequence[Pair] | None = None) -> Iterator[Record | Refused]:
    """Yield edits: `image` is the source, `target` the result, `meta["edit"]` the instruction.

    Three layouts, told apart by what is there:
    `edits.jsonl` with lines {"source", "target", "instruction"} and, if known, "caption" and "target_caption";
    `edit_turns.json` and `images/<id>/`, as MagicBrush comes;
    `<number>/prompt.json` beside `<seed>_0.jpg` and `<seed>_1.jpg`, as InstructPix2Pix comes.

    Args:
        pairs: What `find_pairs` has found there, if it is listed already.

    Raises:
        FileNotFoundError: If the folder is laid out in none of these ways.

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
    if (folder / LIST).is_file():
        yield from _listed(folder)
    elif (folder / MAGICBRUSH).is_file():
        yield from _magicbrush(folder)
    elif pairs := pairs or find_pairs(Listing(folder)):
        yield from _pairs(folder, pairs)
    else:
        raise FileNotFoundError(f"{folder} holds neither {LIST}, {MAGICBRUSH} nor */{PAIRS}; write an {LIST}")


def has_list(folder: Path) -> bool:
    """Return whether a file of a folder lists its edits."""
    return (folder / LIST).is_file() or (folder / MAGICBRUSH).is_file()


def find_prompts(listing: Listing) -> Iterator[Path]:
    """Yield the prompts of a folder that is laid out as InstructPix2Pix, sorted; none of any other."""
    prompts = (listing.folder / name / PAIRS for name in sorted(listing.top[0]))
    return (prompt for prompt in prompts if prompt.exists())


def find_pairs(listing: Listing) -> list[Pair]:
    """Return each prompt with the source pictures beside it; none where a file lists the edits."""
    prompts = [] if has_list(listing.folder) else find_prompts(listing)
    return [(str(prompt), sorted(map(str, prompt.parent.glob("*_0.*")))) for prompt in prompts]


def _listed(folder: Path) -> Iterator[Record | Refused]:
    for where, row in read_rows(folder / LIST):
        try:
            if not isinstance(row, dict):
                raise ValueError("no JSON object; correct the line")
            yield _edit(where, folder, row)
        except (ValueError, KeyError) as error:
            why = f'not {{"source", "target", "instruction"}}: {error} is missing' if type(error) is KeyError else error
            yield Refused(where, str(why))


def _magicbrush(folder: Path) -> Iterator[Record | Refused]:
    turns = read_json(folder / MAGICBRUSH)
    for number, turn in enumerate(turns if isinstance(turns, list) else []):
        name = f"{MAGICBRUSH}, entry {number}"
        try:
            image_id = turn["input"].split("-")[0]
            row = {"source": f"images/{image_id}/{turn['input']}", "target": f"images/{image_id}/{turn['output']}"}
            yield _edit(name, folder, {**row, "instruction": turn["instruction"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Refused(name, str(error))


def _pairs(folder: Path, pairs: Sequence[Pair]) -> Iterator[Record | Refused]:
    for prompt, sources in pairs:
        name = name_in(folder, Path(prompt))
        try:
            words = read_json(Path(prompt))
            row = {"instruction": words["edit"], "caption": words["input"], "target_caption": words["output"]}
            if not sources:
                raise ValueError("no pictures named <seed>_0 and <seed>_1 beside it")
        except (ValueError, KeyError, TypeError) as error:
            yield Refused(name, str(error))
            continue
        for source in map(Path, sources):
            target = source.with_name(source.stem[:-1] + "1" + source.suffix)
            pair = {"source": name_in(folder, source), "target": name_in(folder, target)}
            try:
                yield _edit(pair["source"], folder, {**pair, **row})
            except ValueError as error:
                yield Refused(pair["source"], str(error))


def _edit(name: str, folder: Path, row: dict) -> Record:
    source, target = inside(folder, row["source"]), inside(folder, row["target"])
    edit = {"kind": row.get("kind", "instruction"), "instruction": one_line(row["instruction"])}
    if row.get("target_caption"):
        edit["caption"] = one_line(row["target_caption"])
    text = one_line(row["caption"]) if row.get("caption") else None
    return Record(name, image=source, target=target, text=text, meta={"edit": edit})
