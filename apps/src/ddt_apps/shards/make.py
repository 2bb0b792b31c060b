"""`ddt data`: shards from the scene generator, from files of one's own, from packages; and a look into them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

import ddt_data
from ddt_apps.run.progress import StageProgress
from ddt_data.readers.leftovers import NOT_READ
from ddt_data.sets.fetching import fetch_set as fetch
from ddt_data.shards.building import Progress
from ddt_data.shards.remote import open_folder
from ddt_data.terminal import printable

SHOWN = 5  # inputs that were left out, named on the screen


def make_scenes(
    out: Path, count: int, level: str = "standard", split: str = "train", seed: int = 0
) -> ddt_data.Manifest:
    """Pack `count` scenes with captions, edits and questions into the new shard folder `out`.

    Args:
        out: Must not exist.
        count: At least 1.
        level: "tiny" (32 px, one or two large things), "standard" (64 px, up to four) or "hard" (128 px, up to eight).
        split: "train" or "unseen" (combinations that "train" never holds).
        seed: Of the generator.

    Raises:
        ValueError: If a setting is out of its range.
        FileExistsError: If `out` holds something.

    Example:
        >>> import tempfile
        >>> make_scenes(Path(tempfile.mkdtemp()) / "scenes", count=3, level="tiny").samples
        3
    """
    if split not in ("train", "unseen"):
        raise ValueError(f"split {split!r} is not known; use train or unseen")
    with _progress("scenes", count) as show:
        manifest = ddt_data.pack_scenes(ddt_data.level_config(level), count, out, seed, split, progress=show)
    return _told(manifest, out)


def pack_source(
    source: Path,
    out: Path,
    config: ddt_data.PackConfig | None = None,
    kind: str = "auto",
    images: Path | None = None,
    licence: str = "",
    workers: int = 1,
    buckets: bool = False,
) -> None:
    """Pack pictures with or without words, or a .txt or .jsonl file of texts, into a new shard folder.

    Args:
        source: See `ddt_data.open_reader`; or a file of texts, see `ddt_data.pack_text`.
        out: Must not exist; a stopped run goes on where it was.
        config: Size of the pictures, and whether to stop at the first bad one.
        kind: How the source is laid out; "auto" goes by what is there.
        images: Folder of the pictures, where the source is a list.
        licence: For the manifest.
        workers: Processes.
        buckets: Make a folder of shards for each of a few aspect ratios, in one process, instead of squares.

    Raises:
        FileNotFoundError: If the source is missing.
        FileExistsError: If `out` holds something.
        ValueError: If the source cannot be used; names what is wrong.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "prose.txt").write_text("A fox is red.\\nA bell rings.\\n")
        >>> pack_source(folder / "prose.txt", folder / "shards")
        >>> len(ddt_data.ShardDataset(folder / "shards"))
        2
    """
    if kind == "auto" and ddt_data.holds_texts(source):
        if images:
            raise ValueError(f"images ({images}) is for lists of pictures, and {source} holds texts; leave it out")
        _told(ddt_data.pack_text(source, out), out)
        return
    if buckets and workers > 1:
        raise ValueError(f"workers ({workers}) must be 1 with buckets; leave one of the two out")
    config = config or ddt_data.PackConfig()
    with _progress("pack", 0) as show:
        if buckets:
            found, records = ddt_data.open_reader(source, kind, images)
            said = f"{found} {source.name}"
            made = ddt_data.pack_buckets(records, out, config, source=said, licence=licence, progress=show)
        else:
            options = {"kind": kind, "images": images, "licence": licence, "workers": workers}
            made = {".": ddt_data.pack_folder(source, out, config, **options, progress=show)}
    for name, manifest in made.items():
        _told(manifest, out / name)
    said = next(iter(made.values())).source
    albums = kind == "auto" and said.startswith("folder ") and any(source.glob("[!.]*/"))
    note = "; names of folders in it are no captions, --kind classes makes labels of them" if albums else ""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"read as {said}{note}", markup=False)


def fetch_set(
    name: str, out: Path, image_size: int = 64, share_alike: bool = False, workers: int = 1
) -> dict[str, ddt_data.Manifest]:
    """Make shard folders of a real set from pinned packages, with a NOTICE of where it comes from.

    Args:
        name: "emoji", "fashion-mnist", "easy-vqa" or "text".
        out: Folder to make; what an earlier run finished in it stays.
        image_size: Side of the pictures, pixels.
        share_alike: Whether to use parts under such licences: of emoji two styles more, of text Wikipedia.
        workers: Processes that draw emoji.

    Raises:
        ValueError: If the set is not known, or a package cannot be had.
    """
    with _progress("fetch", 0) as show:
        manifests = fetch(name, out, image_size, share_alike, workers, show)
    for folder, manifest in manifests.items():
        _told(manifest, out / folder)
    Console(stderr=True, soft_wrap=True).print(f"sources and licences: {out / 'NOTICE'}", markup=False)
    return manifests


def check_shards(folder: str | Path, sheet: Path | None = None) -> bool:
    """Read every sample of a shard folder, print what it holds, and return whether all is well.

    Args:
        folder: A finished shard folder, of a disk or behind a URL.
        sheet: Picture to write, .png, .jpg or .webp: up to 100 of its pictures.

    Raises:
        FileNotFoundError: If the folder or its manifest is missing.
        ValueError: If the manifest cannot be read.
    """
    with _progress("check", 0) as show:
        found = ddt_data.check_folder(folder, sheet, show)
    manifest = open_folder(folder)[1]
    shapes = ", ".join(f"{width} x {height}: {count}" for (width, height), count in found.shapes.most_common(5))
    shortest, median, longest = found.captions
    lines = [
        f"{folder}: {found.samples} samples in {len(manifest.shards)} shards; source: {manifest.source or 'not told'}",
        f"licence   {manifest.licence}" if manifest.licence else "",
        f"fields    {', '.join(f'{name} {count}' for name, count in sorted(found.fields.items()))}",
        f"pictures  {shapes}" if shapes else "",
        f"captions  {shortest} to {longest} characters, median {median}; {found.repeated_captions} occur before",
        f"questions {found.questions}" if found.questions else "",
        f"tokenizer {manifest.tokenizer}" if manifest.tokenizer else "",
        *(f"part      {part['samples']} {part['name']}, {part['licence']}" for part in manifest.parts),
        f"left out  {len(manifest.skipped)} inputs" + "".join(_few(manifest.skipped)),
        f"twice     {sum(map(len, found.repeated_pictures))} samples show the same as another"
        + "".join(f"\n          {', '.join(keys[:5])}" for keys in found.repeated_pictures[:5]),
        f"broken    {len(found.broken)}" + "".join(_few(found.broken)),
        f"unusable  {len(found.unusable)}" + "".join(_few(found.unusable)) if found.unusable else "",
        f"keys twice {', '.join(found.repeated_keys[:5])}" if found.repeated_keys else "",
        f"sheet     {sheet}" if sheet and sheet.is_file() else "",
    ]
    console = Console(highlight=False, soft_wrap=True)
    said = "\n".join(line for line in lines if line).split("\n")
    console.print("\n".join(map(printable, said)), markup=False)
    return not (found.broken or found.unusable or found.repeated_keys)


@contextmanager
def _progress(stage: str, total: int) -> Iterator[Progress]:
    with StageProgress(stage, total, unit="samples") as bar:

        def show(done: int, of: int) -> None:
            bar.total = of or done  # readers do not know how much is to come
            if done:
                bar.update(done)

        yield show


def _told(manifest: ddt_data.Manifest, out: Path) -> ddt_data.Manifest:
    """Print on stderr what was written, and the first few inputs that were not: first what no reader took."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    left_out = f", {len(manifest.skipped)} inputs left out" if manifest.skipped else ""
    console.print(f"{manifest.samples} samples in {len(manifest.shards)} shards{left_out}: {out}", markup=False)
    for line in _few(sorted(manifest.skipped, key=lambda entry: not entry["why"].startswith(NOT_READ)), "skipped "):
        console.print(line.strip(), markup=False)
    return manifest


def _few(entries: Sequence[dict], word: str = "") -> Iterator[str]:
    for entry in entries[:SHOWN]:
        yield "\n          " + printable(f"{word}{entry['name']}: {entry['why']}")
    if len(entries) > SHOWN:
        yield f"\n          and {len(entries) - SHOWN} more; all are named in manifest.json"
