"""Read webdataset tars that somebody else made, such as those of img2dataset."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ddt_data.readers.listing import DESCRIPTIONS, PICTURES, Listing, ending, is_about, printable
from ddt_data.readers.records import Record, Refused, Span, reason
from ddt_data.readers.tars import read_members
from ddt_data.readers.words import read_words

TARGET = ".target.png"
# Endings of two parts, as shards of ours have them; of other members the last part counts.
OURS = (TARGET, ".ids.npy", ".target.ids.npy", ".latents.npy", ".target.latents.npy")
Members = dict[str, list[Span]]  # of one sample, by ending


def read_webdataset(folder: str | Path, tars: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    """Yield the samples of a folder of tars in order; pictures are read later, from their place in the tar.

    A sample is what shares a name up to its ending, wherever it stands in the tar: one picture, and words as they stand
    beside pictures in folders. `a.seg.png` belongs to `a.jpg`, where there is one. Nothing is unpacked; see
    `read_members` for what is refused.

    Args:
        tars: What `find_tars` has found there, if it is listed already.

    Example:
        >>> import io, tarfile, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with tarfile.open(folder / "00000.tar", "w") as tar:
        ...     for name, data in {"7.jpg": b"...", "7.txt": b"a cat"}.items():
        ...         member = tarfile.TarInfo(name)
        ...         member.size = len(data)
        ...         tar.addfile(member, io.BytesIO(data))
        >>> [(record.name, record.text) for record in read_webdataset(folder)]
        [('00000.tar/7', 'a cat')]
    """
    for path in map(Path, find_tars(Listing(Path(folder))) if tars is None else tars):
        unread: Counter[str] = Counter()
        for key, found in _samples(path).items():
            name = printable(f"{path.name}/{key}")
            if isinstance(found, str):
                yield Refused(name, found)
                continue
            try:
                record, used = _record(name, found)
                unread.update({ending: len(spans) for ending, spans in found.items() if ending not in used})
                yield record
            except (ValueError, OSError) as error:
                yield Refused(name, reason(error), fault=not is_about(key))
        for kind, count in sorted(unread.items()):
            yield Refused(f"{path.name}/*{printable(kind)}", f"not read: {count} members of this kind", fault=False)


def find_tars(listing: Listing) -> list[str]:
    """Return the paths of the tars right inside of a folder, sorted."""
    return [str(listing.folder / name) for name in sorted(listing.top[1]) if ending(name) == ".tar"]


def _samples(path: Path) -> dict[str, Members | str]:
    """Return members by the key that they share; or by the name of a member, or "" for the tar, what is wrong."""
    samples: dict[str, Members | str] = {}
    for member in read_members(path):
        if isinstance(member, Refused):
            samples[_free(member.name, samples)] = member.why
        else:
            key, kind = split_name(member[0])
            samples.setdefault(key, {}).setdefault(kind, []).append(member[1])
    pictured = {key for key, found in samples.items() if not isinstance(found, str) and _pictures(found)}
    for key in [key for key, found in samples.items() if not isinstance(found, str)]:
        whole, part = key, ""
        while "." in whole.rpartition("/")[2]:  # a.seg of a.seg.png, where there is a.jpg
            whole, _, last = whole.rpartition(".")
            part = f".{last}{part}"
            if whole in pictured and not any(kind in DESCRIPTIONS for kind in samples[key]):
                for kind, spans in samples.pop(key).items():
                    samples[whole].setdefault(part + kind, []).extend(spans)
                break
    return samples


def _free(name: str, taken: Mapping) -> str:
    while name in taken:
        name += " "
    return name


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a member into the key of its sample and its ending in small letters.

    Example:
        >>> split_name("sub/22.05.JPG"), split_name("00000007.target.png"), split_name("readme")
        (('sub/22.05', '.jpg'), ('00000007', '.target.png'), ('readme', ''))
    """
    kind = max((each for each in OURS if name.lower().endswith(each)), key=len, default=ending(name))
    return name[: len(name) - len(kind)], kind


def _pictures(found: Members) -> list[Span]:
    return [span for kind, spans in found.items() if kind in PICTURES for span in spans]


def _record(name: str, found: Members) -> tuple[Record, set[str]]:
    """Return the record of a sample, and the endings of the members that went into it."""
    pictures = _pictures(found)
    if len(pictures) != 1:
        kinds = ", ".join(sorted(found)) or "no ending"
        raise ValueError(f"holds {len(pictures)} pictures instead of one, but {kinds}; add, convert or remove one")
    beside = {kind: spans for kind, spans in found.items() if kind in DESCRIPTIONS}
    if twice := [kind for kind, spans in beside.items() if len(spans) > 1]:
        raise ValueError(f"holds two {twice[0]}; remove one")
    text, meta = read_words({kind: spans[0].read for kind, spans in beside.items()})
    target = found[TARGET][0] if TARGET in found and "edit" in meta else None
    used = {*PICTURES, *beside, *([TARGET] if target else [])}
    return Record(name, image=pictures[0], target=target, text=text, meta=meta), used
