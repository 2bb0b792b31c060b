"""Read a folder of pictures, alone or with captions `name.txt` beside `name.jpg`."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ddt_data.readers.records import Record, Refused, one_line

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_folder(folder: str | Path, files: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    """Yield the pictures of a folder and its subfolders, sorted; once there is a caption, each must have one.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cat.jpg").write_bytes(b"..."), (folder / "cat.txt").write_text("a cat")
        >>> [(record.name, record.text) for record in read_folder(folder)]
        [('cat.jpg', 'a cat')]
    """
    folder = Path(folder)
    paths = [Path(name) for name in files or Listing(folder).files]
    captions = {path.with_suffix(""): path for path in paths if path.suffix.lower() == ".txt"}
    taken: dict[Path, Path] = {}
    for path in paths:
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


class Listing:
    """What is in a folder: looked up when it is asked for, and only once, as a folder may hold millions of files.

    Links to folders are not followed, so that a loop of them ends. Paths are strings, which are sent to other processes
    ten times as fast as `Path`s. Readers that are handed the `files` of their folder do not list it again.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def _walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        return os.walk(self.folder, onerror=_stop)

    @cached_property
    def top(self) -> tuple[list[str], list[str]]:
        """Names of the folders, links to folders included, and of the files right inside."""
        return next(self._walk)[1:]

    @cached_property
    def files(self) -> list[str]:
        """Paths of the files in the folder and its subfolders, sorted, hidden ones left out."""
        found = [self.folder / name for name in self.top[1]]
        found += [Path(folder, name) for folder, _, names in self._walk for name in names]
        return [str(path) for path in sorted(found) if not path.name.startswith(".")]


def _stop(error: OSError) -> None:
    raise error  # a folder that may not be read would go missing without a word


def find_pictures(folder: Path, files: Sequence[str] | None = None) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted, by the ending of their names."""
    return [path for path in map(Path, files or Listing(folder).files) if path.suffix.lower() in PICTURES]


def name_in(folder: Path, path: Path) -> str:
    """Return the path of a file in the folder, as messages name it."""
    return printable(path.relative_to(folder).as_posix())


def printable(name: str) -> str:
    """Replace the bytes of a file name that are no UTF-8 by a mark."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
