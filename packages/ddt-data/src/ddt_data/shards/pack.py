"""Pack scenes and texts into shard folders; `pack_pictures.py` packs pictures that people have."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ddt_data.readers.records import Refused, is_utf8, reason
from ddt_data.readers.tables import NAMES, pick, read_rows
from ddt_data.readers.text import read_lines
from ddt_data.scenes.captions import caption
from ddt_data.scenes.config import SceneConfig
from ddt_data.scenes.edits import make_edit
from ddt_data.scenes.questions import make_questions
from ddt_data.scenes.scene import SceneGenerator, render
from ddt_data.shards.block_writing import Sample
from ddt_data.shards.building import Plan, Progress, build
from ddt_data.shards.manifest import Manifest
from ddt_data.shards.notes import Made
from ddt_data.shards.tar_shard import TarShardWriter

SCENES, TEXTS = 1000, 10_000  # samples of a shard

TEXT = ("text",)  # what the column of texts is called


def make_sample(generator: SceneGenerator, index: int, edits: bool = True, questions: int = 3) -> Sample:
    """Make sample `index` of a generator, with its words; a function of the generator and the index alone.

    Args:
        edits: Whether to add an edit; the sample then shows its source, and `target` the result.
        questions: How many questions at most.

    Returns:
        A sample with `key`, `image`, `text`, `meta`, and with edits `target`. `meta` holds `scene`, `questions`, and
        `edit` with `kind`, `instruction`, the target's `caption` and `scene`.

    Example:
        >>> sample = make_sample(SceneGenerator(SceneConfig.tiny(), seed=0), 5)
        >>> sorted(sample)
        ['image', 'key', 'meta', 'target', 'text']
    """
    config = generator.config
    rng = random.Random(f"words {generator.seed} {generator.split} {index}")
    scene = generator[index]

    chances = {name: getattr(config, name) for name in ("style_words", "background_words", "size_words")}
    describe = partial(caption, rng=rng, image_size=config.image_size, **chances)
    sample: Sample = {"key": f"{index:08d}"}
    meta: dict = {}
    if edits:
        edit = make_edit(scene, config, rng, generator.split)
        scene = edit.source
        sample["target"] = render(edit.target, config)
        meta["edit"] = {
            "kind": edit.kind,
            "instruction": edit.instruction,
            "caption": describe(edit.target),
            "scene": asdict(edit.target),
        }
    meta["scene"] = asdict(scene)
    meta["questions"] = [asdict(question) for question in make_questions(scene, config, rng, questions)]
    return {**sample, "image": render(scene, config), "text": describe(scene), "meta": meta}


def pack_scenes(
    config: SceneConfig,
    count: int,
    out: str | Path,
    seed: int,
    split: str = "train",
    edits: bool = True,
    questions: int = 3,
    progress: Progress | None = None,
) -> Manifest:
    """Write scenes with captions, edits and questions into a new shard folder; after a stop go on shard by shard.

    Args:
        split: "train" or "unseen".
        questions: Questions for each sample at most.
        progress: Called with (samples done, count).

    Raises:
        FileExistsError: If `out` holds something.
        ValueError: If `count` is below 1, or the config cannot give such scenes.
    """
    if count < 1:
        raise ValueError(f"count ({count}) of scenes must be at least 1")
    generator = SceneGenerator(config, seed, split)
    source = f"scenes, seed {seed}, split {split}, {json.dumps(asdict(config))}"
    numbers = [range(first, min(first + SCENES, count)) for first in range(0, count, SCENES)]
    plan = Plan(
        lambda: (([source, edits, questions, some.start, some.stop], some) for some in numbers),
        lambda path, some: _write(path, (make_sample(generator, index, edits, questions) for index in some)),
        Manifest(0, (), source=source, image_size=config.image_size),
    )
    return build(out, plan, total=count, progress=progress)


def pack_text(
    lines: str | Path | Iterable[str], out: str | Path, source: str = "", parts: tuple[dict, ...] = ()
) -> Manifest:
    """Write texts into a new shard folder, one sample each; after a stop go on shard by shard.

    Args:
        lines: The texts; or the path of a .txt file with one a line, or of a .jsonl file with lines {"text": ...}.
        source: Where the texts come from, for the manifest; by default the file's name.
        parts: See `Manifest`.

    Raises:
        FileNotFoundError: If the file is missing.
        FileExistsError: If `out` holds something.
        ValueError: If there is no text, a line of the .jsonl is malformed, or the file is not UTF-8.

    Example:
        >>> import tempfile
        >>> pack_text(["A fox is red.", "A bell rings."], Path(tempfile.mkdtemp(), "prose")).samples
        2
    """
    skipped: tuple[dict, ...] = ()
    if isinstance(lines, str | Path):
        source = source or Path(lines).name
        lines, skipped = _read_texts(Path(lines))
    texts = [text for line in lines if (text := line.strip())]
    starts = range(0, max(len(texts), 1), TEXTS)  # what was left out is told with the first
    plan = Plan(
        lambda: (([first, texts[first : first + TEXTS], skipped if first == 0 else ()], first) for first in starts),
        lambda path, first: _write(
            path,
            ({"key": f"{i:08d}", "text": text} for i, text in enumerate(texts[first : first + TEXTS], first)),
            skipped if first == 0 else (),
        ),
        Manifest(0, (), source=source, parts=parts),
    )
    return build(out, plan)


def _write(path: Path, samples: Iterable[Sample], skipped: tuple[dict, ...] = ()) -> Made:
    writer = TarShardWriter(path)
    try:
        for sample in samples:
            writer.write(sample)
        return Made(writer.close(), skipped)
    except ValueError:
        writer.abort()
        raise


def holds_texts(source: str | Path) -> bool:
    """Return whether `pack_text` reads a source: a .txt file, or a .jsonl file whose lines are texts without pictures.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.jsonl")
        >>> _ = file.write_text('{"text": "a fox"}')
        >>> holds_texts(file)
        True
    """
    source = Path(source)
    if source.suffix.lower() != ".jsonl" or not source.is_file():
        return source.suffix.lower() == ".txt" and source.is_file()
    first = next((row[1] for row in read_rows(source) if not isinstance(row, Refused)), {})
    return pick(first, TEXT) is not None and pick(first, NAMES) is None


def _read_texts(path: Path) -> tuple[list[str], tuple[dict, ...]]:
    """Return the texts of a file, and what is not kept of it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of texts")
    if path.suffix.lower() != ".jsonl":
        return [_written(path, f"line {number}", line) for number, line in read_lines(path)], ()
    texts, empty, columns = [], [], set()
    for row in read_rows(path):
        where = (row.name if isinstance(row, Refused) else row[0]).removeprefix(f"{path.name}, ")
        key = None if isinstance(row, Refused) else pick(row[1], TEXT)
        if key is None or not isinstance(row[1][key], str):
            raise ValueError(f'{path}, {where}: not {{"text": ...}}; correct the line')
        text = _written(path, where, row[1][key])
        texts.append(text)
        columns |= set(row[1]) - {key}
        if not text.strip():
            empty.append({"name": f"{path.name}, {where}", "why": "its text is empty; write one or remove the line"})
    if columns:
        why = f"not read: of texts only `text` is kept, not {', '.join(sorted(columns))}"
        empty.append({"name": path.name, "why": reason(why)})
    return texts, tuple(empty)


def _written(path: Path, where: str, text: str) -> str:
    if not is_utf8(text):
        raise ValueError(f"{path}, {where}: not UTF-8; convert the file")
    return text
