"""Shard folders behind a URL, such as `s3://`, `hf://` or `http://`: all that fsspec knows, read through a local cache.

A tar is fetched whole when it is first used, compared with its checksum and kept under that in `$DDT_CACHE/shards`
(`~/.cache/ddt/shards`), for all processes of a machine. That folder may be deleted at any time. A tenth of its disk
stays free: tars that were not used for longest go first.
"""

import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddt_data.shards.manifest import MANIFEST, Manifest, Shard, checksum

FREE = 0.1  # share of the disk
IN_USE = 60.0  # seconds after its last use for which a tar stays in any case
# What clients raise for a connection or an answer that is bad, and is no OSError.
CLIENTS = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"))


class RemoteFolder:
    """A shard folder behind a URL; `folder / name` is a tar of it on this disk, fetched if it was not there.

    Raises:
        OSError: If there is no manifest, or it cannot be fetched.
        ValueError: If it is none, or nothing is known of such URLs.

    Example:
        >>> import fsspec, tempfile
        >>> from ddt_data import pack_text
        >>> folder = Path(tempfile.mkdtemp(), "foxes")
        >>> manifest = pack_text(["a fox"], folder)
        >>> fsspec.filesystem("memory").put(str(folder), "/foxes", recursive=True)
        >>> RemoteFolder("memory://foxes").manifest == manifest
        True
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        with _fetching(f"{self.url}/{MANIFEST}") as (files, path):
            text = files.cat_file(path)
        self.manifest = Manifest.parse(text, f"{self.url}/{MANIFEST}")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Path:
        shard = next(shard for shard in self.manifest.shards if shard.name == name)
        return _kept(f"{self.url}/{name}", shard)


def is_remote(folder: Any) -> bool:
    """Return whether a shard folder is not one of a disk.

    Example:
        >>> is_remote("s3://bucket/ids"), is_remote("data/ids")
        (True, False)
    """
    return "://" in str(folder)


def open_folder(folder: str | Path | RemoteFolder) -> tuple[Path | RemoteFolder, Manifest]:
    """Return a shard folder, of a disk or behind a URL, and its manifest, which is read once.

    Raises:
        OSError: If it is missing, empty or unfinished, or cannot be reached.
        ValueError: If its manifest is none, or nothing is known of such URLs.

    Example:
        >>> import tempfile
        >>> from ddt_data import pack_text
        >>> made = pack_text(["a fox"], folder := Path(tempfile.mkdtemp(), "foxes"))
        >>> open_folder(folder) == (folder, made)
        True
    """
    if is_remote(folder):
        remote = folder if isinstance(folder, RemoteFolder) else RemoteFolder(str(folder))
        return remote, remote.manifest
    return Path(folder), Manifest.read(folder)


def cache_folder() -> Path:
    """Return where what was fetched is kept: `$DDT_CACHE`, or `~/.cache/ddt`."""
    return Path(os.environ.get("DDT_CACHE", Path.home() / ".cache" / "ddt"))


def _kept(url: str, shard: Shard) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise ValueError(f"{url}: its manifest has no SHA-256 of it; copy or make the folder again")
    place = cache_folder() / "shards"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{shard.sha256}.tar"
    with suppress(FileNotFoundError):
        os.utime(path)  # it is used now
        return path
    with open(place / f".{shard.sha256}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # many processes want the same one; the first fetches it
        try:
            if not path.is_file():
                _fetch(url, shard, path)
        finally:
            Path(lock.name).unlink(missing_ok=True)
    return path


def _fetch(url: str, shard: Shard, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _fetching(url) as (files, there):
            _make_room(path.parent, files.size(there) or 0)
            files.get_file(there, str(part))
        if (found := checksum(part)) != shard.sha256:
            raise ValueError(
                f"{url} is not what its manifest says (SHA-256 {found:.16}...); copy the folder there again"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _make_room(place: Path, size: int) -> None:
    """Delete what was not used for longest, until `size` bytes more leave enough of the disk free."""
    used = []
    for path in place.iterdir():
        with suppress(FileNotFoundError):  # another process makes room, too
            used.append((path.stat().st_mtime, path))
    for when, path in sorted(used):
        disk = shutil.disk_usage(place)
        if disk.free - size >= FREE * disk.total or time.time() - when < IN_USE:
            break
        path.unlink(missing_ok=True)


@contextmanager
def _fetching(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL, and the path in it; what goes wrong with them is told in a line."""
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(url)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: there is no such file; name a shard folder") from error
    except (ImportError, ValueError, OSError, *_client_errors()) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{url} cannot be fetched ({said})") from error


def _client_errors() -> list[type[Exception]]:
    return [getattr(sys.modules[module], name) for module, name in CLIENTS if module in sys.modules]
