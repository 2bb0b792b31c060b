# Copied from packages/ddt-data/src/ddt_data/readers/listing.py
"""What is in a folder, by the endings of its names; and the files that a list names."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

# Endings, in any case. What Pillow reads as one of the six formats of `shards/pictures.py`:
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif")
PICTURES += (".tif", ".tiff")
CAPTIONS = (".txt", ".caption")  # beside a picture
DESCRIPTIONS = (*CAPTIONS, ".json")
# Files about the others, whatever their ending; and folders that programs make, of thumbnails or of what was deleted,
# beside those whose names begin with a dot.
ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog", "desktop", "thumbs", "attribution")
PROGRAMS = ("__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found")


class Listing:
    """What is in a folder: looked up when it is asked for, and only once, as a folder may hold millions of files.

    Hidden files and folders are left out. Links to folders are followed, unless they lead to where a file is listed
    anyway, so that a loop of them ends. Paths are strings, which are sent to other processes ten times as fast as
    `Path`s. Readers that are handed the `files` of their folder do not list it again.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def _walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        return _walk(self.folder)

    @cached_property
    def top(self) -> tuple[list[str], list[str]]:
        """Names of the folders, links to folders included, and of the files right inside."""
        return next(self._walk)[1:]

    @cached_property
    def files(self) -> list[str]:
        """Paths of the files in the folder and its subfolders, sorted."""
        found = [self.folder / name for name in self.top[1]]
        found += [Path(folder, name) for folder, _, names in self._walk for name in names]
        return [str(path) for path in sorted(found)]

    @cached_property
    def described(self) -> dict[str, list[str]]:
        """See `find_described`."""
        return find_described(self.files)


def _walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    root, followed, outside = os.path.realpath(top), set(), set()
    for folder, folders, files in os.walk(top, onerror=_stop, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if name.startswith(".") or name.lower() in PROGRAMS:
                continue
            if os.path.islink(path) or folder in outside:
                real = os.path.realpath(path)
                if real in followed or _holds(root, real) or _holds(real, root):
                    continue
                followed.add(real)
                outside.add(path)
            kept.append(name)
        folders[:] = kept
        yield folder, kept, [name for name in files if not name.startswith(".")]


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _stop(error: OSError) -> None:
    raise error  # a folder that may not be read would go missing without a word


def find_pictures(folder: Path, files: Sequence[str] | None = None) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted, by the ending of their names."""
    return [Path(file) for file in (Listing(folder).files if files is None else files) if ending(file) in PICTURES]


def find_described(files: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of words that share the name of a picture, with or without its ending, by the pictures' paths.

    Names are compared in their normal form: systems write the same ü in one letter or in two.

    Example:
        >>> find_described(["a.jpg", "a.txt", "b.jpg", "c.jpg", "c.jpg.json", "readme.txt"])
        {'a.jpg': ['a.txt'], 'c.jpg': ['c.jpg.json']}
    """
    words: dict[str, list[str]] = {}
    pictures = []
    for file in files:
        if (kind := ending(file)) in DESCRIPTIONS:
            words.setdefault(stem(file), []).append(file)
        elif kind in PICTURES:
            pictures.append(file)
    found = ((file, words.get(stem(file), []) + words.get(stem(f"{file}."), [])) for file in pictures) if words else ()
    return {file: beside for file, beside in found if beside}


def ending(name: str) -> str:
    """Return the last ending of a name, in small letters.

    Example:
        >>> ending("photos/22.05.JPG"), ending("photos.d/readme")
        ('.jpg', '')
    """
    return os.path.splitext(name)[1].lower()


def stem(name: str) -> str:
    """Return a name, or path, without its last ending and in its normal form."""
    stem = os.path.splitext(name)[0]
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def is_about(name: str) -> bool:
    """Return whether a file is about the others, and no data.

    Example:
        >>> is_about("photos/README.txt"), is_about("photos/reading.txt")
        (True, False)
    """
    return os.path.basename(stem(name)).lower() in ABOUT


def inside(folder: Path, name: object) -> Path:
    """Turn a file name of a list into a path; the name must not lead out of the folder, though a link in it may.

    A file is found, too, if its name has its letters in another normal form, or the list comes from Windows.

    Raises:
        ValueError: If it is no text, leads out of the folder, or there is no such file.
    """
    if isinstance(name, dict | bytes):
        raise ValueError("its picture lies in the list itself, which is not read; save it as a file, and name that")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{str(name)[:40]!r} is no file name; correct it")
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")), name.strip())
    forms += tuple(form.replace("\\", "/") for form in forms)
    for form in dict.fromkeys(forms):
        path = folder / form
        if os.path.isabs(form) or ".." in Path(form).parts:
            # Not Path.resolve and Path.is_file, which raise on loops of links and on names that are too long.
            real, root = os.path.realpath(path), os.path.realpath(folder)
            if not _holds(root, real):
                raise ValueError(f"{name} leads out of the folder; move the picture into it")
            path = folder / os.path.relpath(real, root)
        if os.path.isfile(path):
            return path
    raise ValueError(f"no such picture, {name}; add it or remove the line")


def name_in(folder: Path, path: Path) -> str:
    """Return the path of a file in the folder, as messages name it."""
    return printable(path.relative_to(folder).as_posix())


def printable(name: str) -> str:
    """Replace the bytes of a file name that are no UTF-8 by a mark."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
