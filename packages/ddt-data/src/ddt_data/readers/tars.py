"""Members of tars that somebody else made: where each lies, and by name what is unsafe, cut off or damaged."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ddt_data.readers.records import Refused, Span

BLOCK = 512
# What tarfile raises on headers that are damaged, or made to mislead it.
DAMAGE = (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError, MemoryError)
DAMAGE += (EOFError,)


def read_members(path: Path) -> Iterator[tuple[str, Span] | Refused]:
    """Yield name and place of each file in a tar, in its order, and what has to be refused.

    Nothing is unpacked; names with `..`, links and names that occur twice are refused, hidden files (such as the `._x`
    that macOS adds) are passed over. Several tars joined to one file are read to the end. Of a tar that is cut off or
    damaged, what comes before is kept, and a last refusal without a name says so.
    """
    size = path.stat().st_size
    if not size:
        yield Refused("", "the tar is empty; copy it again")
        return
    names: set[str] = set()
    damage = "" if _has_end(path, size) else "the tar is cut off; copy it again"
    try:
        with open(path, "rb") as file:
            for info in _headers(file, size):
                parts = PurePosixPath(info.name).parts
                name = "/".join(parts)
                if info.isdir() or any(part.startswith(".") and part != ".." for part in parts):
                    continue
                if why := "occurs twice in the tar; rename one" if name in names else _unsafe(info, parts):
                    yield Refused(info.name, why)
                    continue
                if info.offset_data + info.size > size:
                    yield Refused(info.name, "is cut off, and the tar with it; copy it again")
                    return
                names.add(name)
                yield name, Span(path, info.offset_data, info.size)
    except DAMAGE:
        damage = "the tar is damaged, or compressed; copy it again, or unpack it"
    if not damage and not names:
        damage = "the tar holds no files; remove it"
    if damage:
        yield Refused("", damage)


def _unsafe(info: tarfile.TarInfo, parts: tuple[str, ...]) -> str:
    if not info.isfile():
        return "is a link or a device; remove it from the tar"
    if info.issparse():
        return "is stored with holes; make the tar again without --sparse"
    return "leads out of the tar; rename it" if not parts or ".." in parts or info.name.startswith("/") else ""


def _headers(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar; tarfile alone takes a damaged one, and the end of the first of several, for the end.

    Raises:
        ValueError: If one is damaged; and whatever tarfile raises, see `DAMAGE`.
    """
    start = 0
    while start < size:
        file.seek(start)
        tar, last = tarfile.TarFile(fileobj=file), -1
        while (info := tar.next()) is not None:
            if info.size < 0 or info.offset <= last:
                raise ValueError("a header leads back")
            last = info.offset
            yield info
            tar.members.clear()  # or it keeps all of them
            if info.offset_data + info.size > size:
                return
        start = _next_block(file, tar.offset, size)
        if start == tar.offset and start < size:
            raise ValueError(f"no header at byte {start}")


def _next_block(file: BinaryIO, start: int, size: int) -> int:
    """Return where the first block that is not all zeros begins, or the end of the file."""
    file.seek(start)
    while start < size:
        data = file.read(1 << 20)
        if not data:
            break
        if rest := data.lstrip(b"\0"):
            return start + (len(data) - len(rest)) // BLOCK * BLOCK
        start += len(data)
    return size


def _has_end(path: Path, size: int) -> bool:
    """Return whether a tar ends in zeros, as all do; tarfile takes a cut between two members for the end."""
    return size % BLOCK == 0 and not any(Span(path, max(0, size - BLOCK), BLOCK).read())
