"""Pack scenes, folders of pictures and texts into shard folders."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from ddt_data.captions import caption
from ddt_data.edits import make_edit
from ddt_data.images import load_image
from ddt_data.manifest import Manifest
from ddt_data.questions import make_questions
from ddt_data.scene_config import SceneConfig
from ddt_data.scenes import Scene, SceneGenerator, render
from ddt_data.shards import Sample, ShardWriter

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTIONS = "captions.jsonl"
Progress = Callable[[int, int], None]  # (done, of)


def make_sample(generator: SceneGenerator, index: int, edits: bool = True, questions: int = 3) -> Sample:
    """Make sample `index` of a generator, with its words; a function of the generator and the index alone.

    Args:
        generator: Gives the scenes.
        index: Which one, from 0.
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

    def describe(scene: Scene) -> str:
        return caption(
            scene,
            rng,
            config.style_words,
            config.background_words,
            size_words=config.size_words,
            image_size=config.image_size,
        )

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
    """Write scenes with captions, edits and questions into a new shard folder.

    Args:
        config: What scenes may hold.
        count: How many, at least 1.
        out: The shard folder to make.
        seed: Of the generator.
        split: "train" or "unseen".
        edits: Whether each sample has an edit.
        questions: Questions for each sample at most.
        progress: Called with (samples done, count).

    Raises:
        FileExistsError: `out` holds something.
        ValueError: `count` is below 1, or the config cannot give such scenes.
    """
    if count < 1:
        raise ValueError(f"count ({count}) of scenes must be at least 1")
    generator = SceneGenerator(config, seed, split)
    source = f"scenes, seed {seed}, split {split}, {json.dumps(asdict(config))}"
    with ShardWriter(out, source=source, image_size=config.image_size) as writer:
        for index in range(count):
            writer.write(make_sample(generator, index, edits, questions))
            if progress:
                progress(index + 1, count)
    return writer.manifest


def pack_folder(
    folder: str | Path,
    out: str | Path,
    image_size: int,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the pictures of a folder, with their captions, into a new shard folder.

    Captions are `name.txt` beside `name.jpg`, or one file `captions.jsonl` with lines {"file_name": ..., "text": ...};
    a folder of pictures alone will do. Subfolders count. `meta["source"]` of a sample is the picture's path in the
    folder.

    Args:
        folder: Where the pictures are (jpg, png, webp, bmp, gif, tiff).
        out: The shard folder to make.
        image_size: Side in pixels; see `load_image` for how a picture becomes square.
        skip_bad: Leave unreadable pictures out and name them in the manifest, instead of failing.
        progress: Called with (pictures done, of).

    Raises:
        FileNotFoundError: The folder is missing.
        FileExistsError: `out` holds something.
        ValueError: No pictures, one unreadable, two of one name, a caption without picture, or a picture without
            caption while others have one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of pictures")
    pictures = find_pictures(folder)
    texts = read_captions(folder, pictures)
    with ShardWriter(out, source=f"folder {folder.name}", image_size=image_size, image_format="jpg") as writer:
        for index, path in enumerate(pictures):
            name = path.relative_to(folder).as_posix()
            try:
                image = load_image(path, image_size)
            except ValueError as error:
                if not skip_bad:
                    raise ValueError(f"{error}, or skip bad pictures (skip_bad=True, or --skip-bad)") from error
                writer.skip(name, str(error))
            else:
                text = {"text": texts[path]} if texts else {}
                writer.write({"key": f"{index:08d}", "image": image, **text, "meta": {"source": name}})
            if progress:
                progress(index + 1, len(pictures))
    return writer.manifest


def find_pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder and its subfolders, sorted.

    Raises:
        ValueError: There are none, or two differ only in their ending.
    """
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not pictures:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)}); put some there or name another folder")
    stems: dict[Path, Path] = {}
    for path in pictures:
        if (other := stems.setdefault(path.with_suffix(""), path)) != path:
            raise ValueError(f"{other} and {path.name} share one name, so a caption would fit both; rename one")
    return pictures


def read_captions(folder: Path, pictures: list[Path]) -> dict[Path, str]:
    """Give each picture its caption, or an empty dict where the folder has no captions at all.

    Raises:
        ValueError: A caption has no picture or is empty, a picture has none while others do, or `captions.jsonl` is
            malformed or stands beside .txt files.
    """
    beside = sorted(folder.rglob("*.txt"))
    listed = folder / CAPTIONS
    if listed.exists() and beside:
        raise ValueError(f"{folder} holds both {CAPTIONS} and {beside[0].name}; keep one kind of captions")
    if listed.exists():
        texts = _read_list(listed, set(pictures))
    else:
        by_stem = {path.with_suffix(""): path for path in pictures}
        texts = {}
        for path in beside:
            if path.with_suffix("") not in by_stem:
                raise ValueError(f"{path}: caption without a picture; add {path.stem}.jpg or remove the caption")
            texts[by_stem[path.with_suffix("")]] = " ".join(path.read_text(encoding="utf-8").split())
    if empty := [path for path, text in texts.items() if not text]:
        raise ValueError(f"{empty[0]}: its caption is empty; write one or remove the picture")
    missing = [path for path in pictures if path not in texts]
    if texts and missing:
        raise ValueError(f"{missing[0]}: no caption ({len(missing)} such pictures); add them, or remove every caption")
    return texts


def _read_list(listed: Path, pictures: set[Path]) -> dict[Path, str]:
    texts: dict[Path, str] = {}
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{listed}, line {number}"
        try:
            entry = json.loads(line)
            path, text = listed.parent / entry["file_name"], " ".join(entry["text"].split())
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{where}: not {{"file_name": ..., "text": ...}}; correct the line') from error
        if path not in pictures:
            raise ValueError(f"{where}: caption without a picture, {entry['file_name']}; add it or remove the line")
        if path in texts:
            raise ValueError(f"{where}: a second caption for {entry['file_name']}; remove one")
        texts[path] = text
    return texts


def pack_text(lines: str | Path | Iterable[str], out: str | Path, source: str = "") -> Manifest:
    """Write texts into a new shard folder, one sample each.

    Args:
        lines: The texts; or the path of a .txt file with one a line, or of a .jsonl file with lines {"text": ...}.
        out: The shard folder to make.
        source: Where the texts come from, for the manifest; by default the file's name.

    Raises:
        FileNotFoundError: The file is missing.
        FileExistsError: `out` holds something.
        ValueError: There is no text, or a line of the .jsonl is malformed.

    Example:
        >>> import tempfile
        >>> pack_text(["A fox is red.", "A bell rings."], Path(tempfile.mkdtemp(), "prose")).samples
        2
    """
    if isinstance(lines, str | Path):
        source = source or Path(lines).name
        lines = _read_texts(Path(lines))
    with ShardWriter(out, samples_per_shard=10_000, source=source) as writer:
        for index, text in enumerate(text for line in lines if (text := line.strip())):
            writer.write({"key": f"{index:08d}", "text": text})
    return writer.manifest


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
