"""Find out how pictures and words are laid out, and open the reader for that."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ddt_data.readers.captions import find_lists, read_captions
from ddt_data.readers.classes import has_classes, read_classes
from ddt_data.readers.coco import is_coco, read_coco
from ddt_data.readers.edits import LIST, MAGICBRUSH, find_edits, find_pairs, read_edits, target_of
from ddt_data.readers.folder import read_folder
from ddt_data.readers.leftovers import BESIDE_SHARDS, account
from ddt_data.readers.listing import CAPTIONS, PICTURES, Listing, ending, find_pictures
from ddt_data.readers.llava import is_llava, read_llava
from ddt_data.readers.records import Record, Refused
from ddt_data.readers.tables import LISTS
from ddt_data.readers.text import read_json
from ddt_data.readers.webdataset import find_tars, read_webdataset

KINDS = ("folder", "classes", "captions", "coco", "llava", "edits", "webdataset")
LISTED = ("captions", "coco", "llava")  # by a file, so that the pictures may be elsewhere
Reader = Callable[[], Iterator[Record | Refused]]


def open_reader(
    source: str | Path, kind: str = "auto", images: str | Path | None = None
) -> tuple[str, Iterator[Record | Refused]]:
    """Open what a source holds; return its kind, and an iterator over records and what is refused.

    Every file of a folder is in a record, or refused by name; only hidden ones are passed over.

    Args:
        source: A folder; or a file that lists pictures (captions .jsonl, .csv, .tsv, .parquet; COCO or LLaVA-style
            .json; edits.jsonl), or a .tar.
        kind: One of `KINDS`, or "auto" to go by what is there.
        images: Where a file lists the pictures, other than edits: their folder.

    Raises:
        FileNotFoundError: If the source or the folder of pictures is missing.
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
    if images and not Path(images).is_dir():
        raise FileNotFoundError(f"images ({images}): no such folder of pictures")
    listing = Listing(source if source.is_dir() else source.parent)
    if source.is_dir():
        found, at = _detect(listing) if kind == "auto" else (kind, _place(listing, kind))
    else:
        found, at = _detect_file(source) if kind == "auto" else (kind, source)
    if images and found not in LISTED:
        raise ValueError(f"images ({images}) is for lists of captions, and {source} is of kind {found}; leave it out")
    if source.is_file() and found in ("folder", "classes"):
        raise ValueError(f"{source} is a file, and kind {found} is a folder; name its folder")
    read, used, unlisted = _reader(found, at, listing, images)
    return found, partial(account, read, source, listing.files, used, unlisted) if source.is_dir() else read


def _reader(found: str, at: Path, listing: Listing, images: str | Path | None) -> tuple[Reader, list[str], str]:
    """Return the reader, what it takes beside pictures, and why pictures may be left."""
    match found:
        case "folder":
            used = [file for beside in listing.described.values() for file in beside]
            return partial(read_folder, at, listing.files), used, ""
        case "classes":
            return partial(read_classes, at, listing.files), [], ""
        case "captions":
            elsewhere = "the pictures of the list are in another folder; pack this by itself"
            return partial(read_captions, at, listing.files, images), [str(at)], elsewhere
        case "coco" | "llava":
            read = partial(read_coco if found == "coco" else read_llava, at, images)
            return read, [str(at)], f"no entry of {at.name} that is read names it; add one or remove the picture"
        case "edits":
            pairs = [] if at.is_file() else find_pairs(listing)
            used = [
                str(at),
                *(file for prompt, sources in pairs for file in (prompt, *sources, *map(target_of, sources))),
            ]
            return partial(read_edits, at, pairs), used, "no edit that is read names it; add one or remove the picture"
        case _:
            tars = [str(at)] if at.is_file() else find_tars(listing)
            keys = {Path(tar).stem for tar in tars}
            used = [*tars, *(str(listing.folder / name) for name in listing.top[1] if _is_about_tar(name, keys))]
            return (
                partial(read_webdataset, listing.folder, tars),
                used,
                "it lies beside tars; pack it from another folder",
            )


def _is_about_tar(name: str, keys: set[str]) -> bool:
    """Return whether a file beside tars says something about one, as img2dataset writes it, or about the shards."""
    key, kind = Path(name).stem.removesuffix("_stats"), ending(name)
    return name in BESIDE_SHARDS or (key in keys and kind in (".json", ".parquet", ".idx"))


def _detect_file(source: Path) -> tuple[str, Path]:
    if source.name.lower() in (LIST, MAGICBRUSH):
        return "edits", source
    if ending(source.name) in LISTS:
        return "captions", source
    if ending(source.name) == ".tar":
        return "webdataset", source
    if found := _kind_of_json(source) if ending(source.name) == ".json" else None:
        return found, source
    raise ValueError(f"{source} lists no pictures; it may be {', '.join(LISTS)}, .tar, or COCO or LLaVA-style .json")


def _kind_of_json(file: Path) -> str | None:
    found = read_json(file)
    return "coco" if is_coco(found) else "llava" if is_llava(found) else None


def _detect(listing: Listing) -> tuple[str, Path]:
    source = listing.folder
    if edits := find_edits(listing):
        return "edits", edits
    if find_pairs(listing):
        return "edits", source
    described = listing.described
    beside = [file for files in described.values() for file in files if ending(file) in CAPTIONS]
    if lists := find_lists(listing):
        if others := [*lists[1:], *map(Path, beside)]:
            raise ValueError(f"{source} holds both {lists[0].name} and {others[0].name}; keep one kind of captions")
        return "captions", lists[0]
    if find_tars(listing):
        return "webdataset", source
    if not find_pictures(source, listing.files):
        held = ", ".join(f"{count} {kind or 'without ending'}" for kind, count in _endings(listing)) or "nothing"
        raise ValueError(
            f"{source} holds no pictures ({', '.join(PICTURES)}) but {held}; put some there or name another folder"
        )
    if not beside and (found := _described_by(listing)):
        return found
    return ("classes" if has_classes(source, listing.files) else "folder"), source


def _endings(listing: Listing) -> list[tuple[str, int]]:
    return Counter(ending(file) for file in listing.files).most_common(4)


def _described_by(listing: Listing) -> tuple[str, Path] | None:
    """Find a .json right inside of a folder that describes its pictures, as COCO or LLaVA do, whatever its name."""
    described = {file for files in listing.described.values() for file in files}
    found = []
    for name in sorted(listing.top[1]):
        path = listing.folder / name
        if ending(name) == ".json" and str(path) not in described and path.is_file():
            try:
                kind = _kind_of_json(path)
            except ValueError:  # it is named among what is not read
                continue
            found += [(kind, path)] if kind else []
    if len(found) > 1:
        raise ValueError(
            f"{listing.folder} holds both {found[0][1].name} and {found[1][1].name}; name one as the source"
        )
    return found[0] if found else None


def _place(listing: Listing, kind: str) -> Path:
    """Find the file that a reader of lists needs, where the folder was named."""
    if kind == "captions":
        return next(iter(find_lists(listing)), listing.folder / "captions.jsonl")
    if kind in ("coco", "llava"):
        found = _described_by(listing)
        if not found or found[0] != kind:
            raise ValueError(f"{listing.folder} holds no .json of kind {kind}; name the file itself")
        return found[1]
    return find_edits(listing) or listing.folder if kind == "edits" else listing.folder
