"""Pack scenes and texts into shard folders; `pack_pictures.py` packs pictures that people have."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ddt_data.readers.captions import NAMES, read_rows
from ddt_data.scenes.captions import caption
from ddt_data.scenes.config import SceneConfig
from ddt_data.scenes.edits import make_edit
from ddt_data.scenes.questions import make_questions
from ddt_data.scenes.scene import SceneGenerator, render
from ddt_data.shards.block_writing import Sample
from ddt_data.shards.building import Made, Plan, Progress, build
from ddt_data.shards.manifest import Manifest
from ddt_data.shards.tar_shard import TarShardWriter

SCENES, TEXTS = 1000, 10_000  # samples of a shard


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
        ValueError: If there is no text, or a line of the .jsonl is malformed.

    Example:
        >>> import tempfile
        >>> pack_text(["A fox is red.", "A bell rings."], Path(tempfile.mkdtemp(), "prose")).samples
        2
    """
    if isinstance(lines, str | Path):
        source = source or Path(lines).name
        lines = _read_texts(Path(lines))
    texts = [text for line in lines if (text := line.strip())]
    starts = range(0, len(texts), TEXTS)
    plan = Plan(
        lambda: (([first, texts[first : first + TEXTS]], first) for first in starts),
        lambda path, first: _write(
            path, ({"key": f"{i:08d}", "text": text} for i, text in enumerate(texts[first : first + TEXTS], first))
        ),
        Manifest(0, (), source=source, parts=parts),
    )
    return build(out, plan)


def _write(path: Path, samples: Iterable[Sample]) -> Made:
    writer = TarShardWriter(path)
    try:
        for sample in samples:
            writer.write(sample)
        return Made(writer.close())
    except ValueError:
        writer.abort()
        raise


def holds_texts(source: str | Path) -> bool:
    """Return whether `pack_text` reads a source: a .txt file, or a .jsonl file whose lines name no picture.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.jsonl")
        >>> _ = file.write_text('{"text": "a fox"}')
        >>> holds_texts(file)
        True
    """
    source = Path(source)
    if source.suffix != ".jsonl" or not source.is_file():
        return source.suffix == ".txt" and source.is_file()
    _, first = next(read_rows(source), ("", None))
    return isinstance(first, dict) and not any(name in first for name in NAMES)


def _read_texts(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of texts")
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(json.loads(line)["text"].strip())
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}, line {number}: not {{"text": ...}}; correct the line') from error
    return texts
