"""Where results go: tried before the work that makes them."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # as ddt_data writes them


def try_file(option: str, path: Path, endings: tuple[str, ...] = PICTURES) -> None:
    """Try whether a file, by default a picture, can be written to `path`.

    Raises:
        ValueError: If it cannot; names the option and the remedy.

    Example:
        >>> try_file("--out", Path("fox.tga"))
        Traceback (most recent call last):
        ValueError: --out 'fox.tga' must end in .png, .jpg, .jpeg, .webp
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"{option} '{path}' must end in {', '.join(endings)}")
    if os.path.isdir(path):
        raise ValueError(f"{option} '{path}' is a folder; name a file in it")
    _try(option, path, path.parent)


def try_folder(option: str, folder: Path) -> None:
    """Try whether `folder` is one that can be written to, or can be made.

    Raises:
        ValueError: If not, or if it was a URL; names the option and what is in the way.
    """
    if ":/" in str(folder):  # a path has one slash of a URL
        raise ValueError(f"{option} '{folder}' must be a folder of a disk; what is made can then be copied to a URL")
    _try(option, folder, folder)


def _try(option: str, path: Path, folder: Path) -> None:
    folders = (folder.absolute(), *folder.absolute().parents)
    there = next(each for each in folders if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(f"{option} '{path}' cannot be made: '{there}' is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path.with_name(f".{path.name}.part"))  # a name that is too long; nothing is left by a kill
    except OSError as error:
        raise ValueError(f"{option} '{path}' cannot be written: {error.strerror}; name another place") from error
