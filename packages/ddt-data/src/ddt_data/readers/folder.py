"""Read a folder of pictures, alone or with captions `name.txt` beside `name.jpg`."""

import os
from collections.abc import Iterator
from pathlib import Path

from ddt_data.readers.records import Record, Refused, one_line

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_folder(folder: str | Path) -> Iterator[Record | Refused]:
    """Yield the pictures of a folder and its subfolders, sorted; once there is a caption, each must have one.

    Links to folders are not followed, so that a loop of them ends.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cat.jpg").write_bytes(b"..."), (folder / "cat.txt").write_text("a cat")
        >>> [(record.name, record.text) for record in read_folder(folder)]
        [('cat.jpg', 'a cat')]
    """
    folder = Path(folder)
    files = find_files(folder)
    captions = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    taken: dict[Path, Path] = {}
    for path in files:
        if path.suffix.lower() in PICTURES:
            name, stem = name_in(folder, path), path.with_suffix("")
            try:
                if captions and (other := taken.setdefault(stem, path)) != path:
                    raise ValueError(f"shares its caption with {other.name}; rename one")
                if not path.is_file():
                    raise ValueError("is no file, or a link that leads nowhere; remove it")
                yield Record(name, image=path, text=_caption(captions, path) if captions else None)
            except (ValueError, OSError) as error:
                yield Refused(name, str(error))
    for stem, path in captions.items():
        if stem not in taken:
            name = name_in(folder, path)
            yield Refused(name, f"caption without a picture; add {stem.name}.jpg or remove the caption")


def _caption(captions: dict[Path, Path], picture: Path) -> str:
    if (path := captions.get(picture.with_suffix(""))) is None:
        raise ValueError("no caption, while other pictures have one; add it")
    try:
        return one_line(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"its caption {path.name} is not UTF-8 ({error.reason}); convert it") from error


def find_files(folder: Path) -> list[Path]:
    """List what is in a folder and its subfolders, sorted, hidden files left out."""
    found = [Path(top, name) for top, _, names in os.walk(folder, onerror=_stop) for name in names]
    return sorted(path for path in found if not path.name.startswith("."))


def _stop(error: OSError) -> None:
    raise error  # a folder that may not be read would go missing without a word


def find_pictures(folder: Path) -> list[Path]:
    """List the pictures among them, by the ending of their names."""
    return [path for path in find_files(folder) if path.suffix.lower() in PICTURES]


def name_in(folder: Path, path: Path) -> str:
    """Name a file by its path in the folder."""
    return printable(path.relative_to(folder).as_posix())


def printable(name: str) -> str:
    """Put a mark in the place of bytes of a file name that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
