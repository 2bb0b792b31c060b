"""What lies in a source and no reader takes: each file is named, so that nothing is lost in silence."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ddt_data.readers.listing import CAPTIONS, DESCRIPTIONS, PICTURES, ending, is_about, printable, stem
from ddt_data.readers.records import Record, Refused
from ddt_data.readers.tables import LISTS

NOT_READ = "not read: "  # how the reasons begin
OTHER_PICTURES = (".heic", ".heif", ".avif", ".svg", ".psd", ".jp2", ".jxl", ".eps", ".ico", ".tga", ".exr", ".hdr")
OTHER_PICTURES += (".ppm", ".pgm", ".pnm", ".pcx", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")
ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
WORDS = (*DESCRIPTIONS, *LISTS, ".xml", ".yaml", ".yml", ".xls", ".xlsx", ".ods", ".tags", ".cap")
MANY = 20  # files of one ending that are no loss; more are named together
SHARDS = "manifest.json"  # what makes a folder one of shards
BESIDE_SHARDS = (SHARDS, "index.npy")  # what such a folder holds besides tars


def account(
    read: Callable[[], Iterator[Record | Refused]],
    folder: Path,
    files: Sequence[str],
    used: Sequence[str],
    unlisted: str,
) -> Iterator[Record | Refused]:
    """Yield what a reader yields, and after it each file of the folder that it did not take.

    Args:
        files: All files of the folder, as `Listing` gives them.
        used: Those that the reader takes beside pictures, such as the list of them.
        unlisted: Why pictures may be left.
    """
    start = len(str(folder / "x")) - 1
    left = {file: printable(file[start:]) for file in files}
    names = {name: file for file, name in left.items()}
    for file in used:
        left.pop(file, None)
    wordless = True
    for found in read():
        if isinstance(found, Record):
            left.pop(str(found.image), None)
            left.pop(str(found.target), None)
            wordless = wordless and found.text is None and not found.meta
        else:
            left.pop(names.get(found.name), None)
        yield found
    yield from _named(left, os.path.realpath(folder), unlisted, wordless)


def _named(left: dict[str, str], root: str, unlisted: str, wordless: bool) -> Iterator[Refused]:
    shards = {os.path.dirname(name) for name in left.values() if os.path.basename(name) == SHARDS}
    pictured = {stem(name) for name in left.values() if ending(name) in PICTURES}
    rest: dict[str, list[str]] = defaultdict(list)
    for file, name in left.items():
        kind, about = ending(name), is_about(name)
        if os.path.dirname(name) in shards:
            if os.path.basename(name) == SHARDS:
                why = f"{NOT_READ}shards that are packed already; name their folder itself"
                yield Refused(f"{os.path.dirname(name)}/", why, fault=False)
        elif not os.path.exists(file):
            if not os.path.realpath(file).startswith(os.path.join(root, "")):  # else its end is listed, if it has one
                yield Refused(name, f"{NOT_READ}a link that leads nowhere; mend or remove it")
        elif kind in PICTURES:
            yield Refused(name, f"{NOT_READ}{unlisted}", fault=False)
        elif kind in OTHER_PICTURES:
            yield Refused(name, f"{NOT_READ}pictures of this kind are not; convert it to .png or .jpg")
        elif kind in ARCHIVES:
            yield Refused(name, f"{NOT_READ}an archive; unpack it, or pack a .tar by its own name")
        elif kind in CAPTIONS and not about and stem(name) not in pictured:
            advice = f"add {os.path.basename(stem(name))}.jpg or remove the caption"
            yield Refused(name, f"{NOT_READ}caption without a picture; {advice}")
        else:
            rest["about" if about else kind].append(name)
    for kind, names in sorted(rest.items()):
        why = _why(kind, wordless)
        if len(names) > MANY:
            yield Refused(f"{len(names)} files, such as {names[0]}", why, fault=False)
        else:
            yield from (Refused(name, why, fault=False) for name in names)


def _why(kind: str, wordless: bool) -> str:
    if kind not in WORDS:
        return f"{NOT_READ}neither a picture nor words of one"
    if wordless:
        return f"{NOT_READ}no picture got words, though this may hold some; lay them out as the README of ddt-data says"
    return f"{NOT_READ}words of no picture that is read, or in no known layout; see the README of ddt-data"
