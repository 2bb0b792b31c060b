"""`ddt data`: shards from the scene generator, or from files of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

import ddt_data
from ddt_apps.progress import StageProgress
from ddt_data.pack import Progress

PRESETS = {"tiny": ddt_data.SceneConfig.tiny, "full": ddt_data.SceneConfig}


def make_scenes(out: Path, count: int, preset: str = "full", split: str = "train", seed: int = 0) -> ddt_data.Manifest:
    """Pack `count` scenes with captions, edits and questions into the new shard folder `out`.

    Args:
        out: Must not exist.
        count: At least 1.
        preset: "tiny" (32 px, one or two large objects) or "full" (64 px, up to four).
        split: "train" or "unseen" (combinations that "train" never holds).
        seed: Of the generator.

    Raises:
        ValueError: A setting is out of its range.
        FileExistsError: `out` holds something.

    >>> import tempfile
    >>> make_scenes(Path(tempfile.mkdtemp()) / "scenes", count=3, preset="tiny").samples
    3
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; use {' or '.join(PRESETS)}")
    if split not in ("train", "unseen"):
        raise ValueError(f"split {split!r} is not known; use train or unseen")
    with _progress("scenes", count) as show:
        manifest = ddt_data.pack_scenes(PRESETS[preset](), count, out, seed, split, progress=show)
    return _told(manifest, out)


def pack_pictures(folder: Path, out: Path, image_size: int = 64, skip_bad: bool = False) -> ddt_data.Manifest:
    """Pack a folder of pictures, with captions or without, or a .txt or .jsonl file of texts, into new shards.

    Args:
        folder: Holds pictures, and `name.txt` beside `name.jpg` or one `captions.jsonl`; or is a file of texts.
        out: Must not exist.
        image_size: Side of the packed pictures, pixels.
        skip_bad: Leave unreadable pictures out; they are named in the manifest.

    Raises:
        FileNotFoundError: `folder` is missing.
        FileExistsError: `out` holds something.
        ValueError: A picture or a caption cannot be used; names it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "prose.txt").write_text("A fox is red.\\nA bell rings.\\n")
    >>> pack_pictures(folder / "prose.txt", folder / "shards").samples
    2
    """
    if folder.is_file():
        return _told(ddt_data.pack_text(folder, out), out)
    if image_size < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1 pixel")
    with _progress("pack", 0) as show:
        manifest = ddt_data.pack_folder(folder, out, image_size, skip_bad=skip_bad, progress=show)
    return _told(manifest, out)


@contextmanager
def _progress(stage: str, total: int) -> Iterator[Progress]:
    with StageProgress(stage, total, unit="samples") as bar:

        def show(done: int, of: int) -> None:
            bar.total = of
            if done == of or done % 64 == 0:
                bar.update(done)

        yield show


def _told(manifest: ddt_data.Manifest, out: Path) -> ddt_data.Manifest:
    """Say on stderr what was written."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{manifest.samples} samples in {len(manifest.shards)} shards: {out}", markup=False)
    for entry in manifest.skipped:
        console.print(f"skipped {entry['name']}: {entry['why']}", markup=False)
    return manifest
