# Copied from packages/ddt-data/src/ddt_data/shards/claim.py
"""A folder that is to be made: for one command alone, tried before the work starts, seen when it is complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .lock import locked
from .manifest import MANIFEST, Manifest


def part_of(folder: Path) -> Path:
    """Return the folder that stands in until a shard folder is complete: beside it, or beside what a link leads to."""
    real = Path(os.path.realpath(folder))
    return real.with_name(f".{real.name}.part")


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold a shard folder that is to be made, for this command alone, after a try of whether it can be made there.

    Yields:
        The folder that stands in until it is complete; it holds what a run that was stopped has finished.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or another command is making it.
    """
    with held(folder):
        try_place(folder)
        yield part_of(folder)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder for shard folders, if it is not there, and hold it for this command alone.

    Raises:
        OSError: If nothing can be written there, or another command is at it.
    """
    with held(folder):
        real, there = Path(os.path.realpath(folder)), folder.is_dir()
        with _named(folder):
            real.mkdir(exist_ok=True)
            if not os.access(real, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it may not be written to")
        try:
            yield
        finally:
            if not there and not any(real.iterdir()):
                real.rmdir()


def try_place(folder: Path) -> None:
    """Make the folder that stands in for one that is to be made, if that can be made.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there.
    """
    refuse_if_taken(folder)
    real = Path(os.path.realpath(folder))
    with _named(folder):
        if real.is_dir():  # a mount point or a folder of somebody else cannot be replaced, which shows now
            with suppress(FileNotFoundError):  # another command tries it, too
                real.rmdir()
            real.mkdir(exist_ok=True)
        part_of(folder).mkdir(exist_ok=True)


@contextmanager
def held(folder: Path, shared: bool = False) -> Iterator[Path]:
    """Hold the lock of a folder that is to be made; see `locked`."""
    with ExitStack() as stack:
        with _named(folder):
            file = stack.enter_context(locked(folder, shared=shared))
        yield file


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn what the system says into what it means for the folder."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(f"{folder} cannot be made there ({error.strerror}); choose another folder") from error


def refuse_if_taken(folder: Path) -> None:
    """Make sure that a shard folder can be made.

    Raises:
        FileExistsError: If the folder holds something.
    """
    if folder.is_dir() and any(folder.iterdir()):
        ours = (folder / MANIFEST).is_file() and _is_ours(folder)
        state = (
            "holds finished shards; delete it or choose another folder"
            if ours
            else "is not empty; choose another folder"
        )
        raise FileExistsError(f"{folder} {state}")
    if os.path.lexists(os.path.realpath(folder)) and not folder.is_dir():
        raise FileExistsError(f"{folder} is no folder; choose another name")


def _is_ours(folder: Path) -> bool:
    try:
        return bool(Manifest.read(folder).shards)
    except (ValueError, OSError):
        return False
