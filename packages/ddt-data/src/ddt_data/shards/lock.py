"""One process at a time: a lock beside a folder while it is being made."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: str | Path, what: str = "is being made by another command", shared: bool = False) -> Iterator[Path]:
    """Hold the lock of a folder, which need not exist yet, within the block.

    The lock is a file beside the folder, `.<name>.lock`. It goes at the end of the block; the kernel lets go of it if
    the process dies, so what a kill leaves behind locks nobody out.

    Args:
        what: What errors say of a folder whose lock somebody else holds.
        shared: Let others share it, who want that as well. The file then stays.

    Yields:
        The file.

    Raises:
        BlockingIOError: If another process holds the lock, or this one does.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "run")
        >>> with locked(folder, what="is training"):  # doctest: +ELLIPSIS
        ...     with locked(folder, what="is training"):
        ...         pass
        Traceback (most recent call last):
        BlockingIOError: ...run is training; wait for its end, or choose another name
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_of(folder)
    while True:
        file = path.open("a+")  # on NFS a lock that is shared asks for reading, and the other one for writing
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"{folder} {what}; wait for its end, or choose another name") from None
        # Whoever held it before may have removed the file between our opening and our locking it, and others who opened
        # it as well may do so now.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    # A child process keeps what was open when it was forked, and with it the lock.
    os.register_at_fork(after_in_child=file.close)
    try:
        yield path
    finally:
        if not shared:
            path.unlink(missing_ok=True)
        file.close()


def is_locked(folder: str | Path) -> bool:
    """Return whether a process holds the lock of a folder, without touching it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "run")
        >>> with locked(folder):
        ...     is_locked(folder)
        True
        >>> is_locked(folder)
        False
    """
    try:
        with _lock_of(folder).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock_of(folder: str | Path) -> Path:
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.lock")
