"""Find out how pictures and words are laid out, and open the reader for that."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ddt_data.readers.captions import read_captions
from ddt_data.readers.classes import has_classes, read_classes
from ddt_data.readers.coco import is_coco, read_coco, read_json
from ddt_data.readers.edits import find_pairs, find_prompts, has_list, read_edits
from ddt_data.readers.folder import PICTURES, Listing, find_pictures, read_folder
from ddt_data.readers.llava import is_llava, read_llava
from ddt_data.readers.records import Record, Refused
from ddt_data.readers.webdataset import find_tars, read_webdataset

KINDS = ("folder", "classes", "captions", "coco", "llava", "edits", "webdataset")
LISTS = (".jsonl", ".csv", ".parquet")
Reader = Callable[[], Iterator[Record | Refused]]


def open_reader(
    source: str | Path, kind: str = "auto", images: str | Path | None = None
) -> tuple[str, Iterator[Record | Refused]]:
    """Open what a source holds; return its kind, and an iterator over records and what is refused.

    Args:
        source: A folder, or a file that lists pictures (captions .jsonl, .csv, .parquet; COCO or LLaVA-style .json).
        kind: One of `KINDS`, or "auto" to go by what is there.
        images: For "coco" and "llava", the folder of the pictures.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If it holds no pictures, two kinds of captions, or is of no known kind.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cat.jpg").write_bytes(b"...")
        >>> kind, records = open_reader(folder)
        >>> kind, [record.name for record in records]
        ('folder', ['cat.jpg'])
    """
    found, read = find_reader(source, kind, images)
    return found, read()


def find_reader(source: str | Path, kind: str, images: str | Path | None) -> tuple[str, Reader]:
    """Return the kind of a source, and its reader as a function that may be sent to processes and called many times.

    Args and errors are those of `open_reader`. All folders are listed here, once, whoever reads how often.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder of pictures, or file that lists them")
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind of source {kind!r} is not known; use auto, {', '.join(KINDS)}")
    listing = Listing(source)
    found, at = _detect(source, listing) if kind == "auto" else (kind, _place(source, kind))
    match found:
        case "folder":
            return found, partial(read_folder, at, listing.files)
        case "classes":
            return found, partial(read_classes, at, listing.files)
        case "captions":
            beside = listing if source.is_dir() else Listing(at.parent)
            return found, partial(read_captions, at, beside.files)
        case "coco":
            return found, partial(read_coco, at, images)
        case "llava":
            return found, partial(read_llava, at, images)
        case "edits":
            return found, partial(read_edits, at, find_pairs(listing))
        case _:
            return found, partial(read_webdataset, at, find_tars(listing))


def _detect(source: Path, listing: Listing) -> tuple[str, Path]:
    if source.is_file():
        if source.suffix in LISTS:
            return "captions", source
        found = read_json(source) if source.suffix == ".json" else None
        if is_coco(found) or is_llava(found):
            return ("coco" if is_coco(found) else "llava"), source
        raise ValueError(f"{source} lists no pictures; it may be .jsonl, .csv, .parquet, or COCO or LLaVA-style .json")
    if has_list(source) or any(find_prompts(listing)):
        return "edits", source
    lists = [path for path in map(source.joinpath, map("captions{}".format, LISTS)) if path.is_file()]
    if lists:
        files = [*lists[1:], *map(Path, listing.files)]
        if len(lists) > 1 or any(path.suffix == ".txt" for path in files):
            other = next(path for path in files if path.suffix in (*LISTS, ".txt") and path != lists[0])
            raise ValueError(f"{source} holds both {lists[0].name} and {other.name}; keep one kind of captions")
        return "captions", lists[0]
    if find_tars(listing):
        return "webdataset", source
    if not find_pictures(source, listing.files):
        raise ValueError(f"{source} holds no pictures ({', '.join(PICTURES)}); put some there or name another folder")
    return ("classes" if has_classes(source, listing.files) else "folder"), source


def _place(source: Path, kind: str) -> Path:
    """Find the file that a reader of lists needs, where the folder was named."""
    if kind == "captions" and source.is_dir():
        return next((path for end in LISTS if (path := source / f"captions{end}").is_file()), source / "captions.jsonl")
    return source
