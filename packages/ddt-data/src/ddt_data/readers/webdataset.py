"""Read webdataset tars that somebody else made, such as those of img2dataset."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ddt_data.readers.folder import PICTURES, Listing, printable
from ddt_data.readers.records import Record, Refused, Span, one_line

TEXTS = ("txt", "caption")


def read_webdataset(folder: str | Path, tars: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    """Yield the samples of a folder of tars in order; pictures are read later, from their place in the tar.

    A sample is what shares a name up to the first dot: one picture, `.txt` or `.json` with a `caption`. The `.json`
    becomes `meta`. Nothing is unpacked; members with `..` in their name, links and repeated keys are refused, and of a
    tar that is cut off the whole samples before the cut are kept.

    Args:
        tars: What `find_tars` has found there, if it is listed already.

    Example:
        >>> import io, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with tarfile.open(folder / "00000.tar", "w") as tar:
        ...     for name, data in {"7.jpg": b"...", "7.txt": b"a cat"}.items():
        ...         member = tarfile.TarInfo(name)
        ...         member.size = len(data)
        ...         tar.addfile(member, io.BytesIO(data))
        >>> [(record.name, record.text) for record in read_webdataset(folder)]
        [('00000.tar/7', 'a cat')]
    """
    for path in map(Path, tars or find_tars(Listing(Path(folder)))):
        seen: set[str] = set()
        for key, members in _samples(path):
            name = printable(f"{path.name}/{key}")
            try:
                if isinstance(members, str):
                    raise ValueError(members)
                if key in seen:
                    raise ValueError("its key occurs twice in the shard; rename one")
                seen.add(key)
                yield _record(name, members)
            except ValueError as error:
                yield Refused(name, str(error))


def find_tars(listing: Listing) -> list[str]:
    """Return the paths of the tars right inside of a folder, sorted."""
    return [str(listing.folder / name) for name in sorted(listing.top[1]) if name.endswith(".tar")]


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Span] | str]]:
    """Yield (key, members by extension), or (name, what is wrong)."""
    size = path.stat().st_size
    damage = "" if _has_end(path, size) else "the tar is cut off; copy it again"
    key, members = "", {}
    names: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                parts = PurePosixPath(info.name).parts
                if not info.isfile():
                    if not info.isdir():
                        yield info.name, "is a link or a device; remove it from the tar"
                    continue
                if ".." in parts or info.name.startswith("/"):
                    yield info.name, "leads out of the tar; rename it"
                    continue
                if info.name in names:
                    yield info.name, "occurs twice in the tar; rename one"
                    continue
                names.add(info.name)
                stem, _, extension = parts[-1].partition(".")
                this = "/".join((*parts[:-1], stem))
                if this != key and members:
                    yield key, members
                    members = {}
                if info.offset_data + info.size > size:
                    yield info.name, "is cut off, and the tar with it; copy it again"
                    return
                key = this
                members[extension.lower()] = Span(path, info.offset_data, info.size)
    except tarfile.TarError as error:
        damage = f"the tar is damaged ({error}); copy it again"
    if members:
        yield key, members
    if damage:
        yield "", damage


def _has_end(path: Path, size: int) -> bool:
    """Return whether a tar ends in zeros, as all do; tarfile takes a cut between two members for the end."""
    return size % 512 == 0 and not any(Span(path, max(0, size - 512), 512).read())


def _record(name: str, members: dict[str, Span]) -> Record:
    pictures = [extension for extension in members if f".{extension}" in PICTURES]
    if len(pictures) != 1:
        raise ValueError(f"holds {len(pictures)} pictures instead of one")
    meta = {}
    if "json" in members:
        try:
            meta = json.loads(members["json"].read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .json cannot be read ({error})") from error
        if not isinstance(meta, dict):
            raise ValueError("its .json is no object")
    text = meta.get("caption")
    for extension in TEXTS:
        if extension in members:
            try:
                text = members[extension].read().decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"its caption is not UTF-8 ({error.reason}); convert it") from error
    # Samples of img2dataset with an empty caption have none.
    return Record(name, image=members[pictures[0]], text=one_line(text) if text else None, meta=meta)
