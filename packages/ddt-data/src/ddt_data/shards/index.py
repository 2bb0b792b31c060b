"""Where each sample of a folder's tars begins: `index.npy` beside the manifest, so that nobody walks the headers.

It holds uint32 numbers. The first eight are the SHA-256 of the manifest's shards and of all other numbers. Then come,
for each tar, the places of its samples and of the end of the last, counted in blocks of 512 bytes as tars are made of.
The members of a sample are found by the headers at its place, when it is read.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE

import numpy as np
from numpy.typing import NDArray

from ddt_data.shards.block_writing import BLOCK_PREFIX, from_npy, npy
from ddt_data.shards.manifest import Manifest, Shard

INDEX = "index.npy"
DIGEST = 8  # numbers that hold a SHA-256


class Places:
    """Places of the samples of one tar, and of the end of the last, within the index of its folder."""

    def __init__(self, index: "Index", first: int, count: int):
        self._index, self._first, self._count = index, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, some: slice) -> NDArray[np.uint32]:
        return self._index.numbers[self._first + some.start : self._first + some.stop]


class Index:
    """The numbers of an index file that speaks for its folder, mapped when a process first reads them.

    Raises:
        ValueError: If the file is no index of these shards.
        OSError: If it, or a shard, cannot be read.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self.path, self._digest, self._numbers = folder / INDEX, None, None
        sizes = [(folder / shard.name).stat().st_size for shard in shards]
        counts = [shard.samples + 1 for shard in shards]
        # No sample is smaller than a block: the tars bound what is read of the index, whatever it and the manifest say.
        if sum(counts) * BLOCKSIZE > sum(sizes) or not self.path.is_file():
            raise ValueError(f"{self.path} is no index of these shards")
        self._firsts = np.cumsum([DIGEST, *counts])
        numbers = self.numbers
        self._digest = bytes(numbers[:DIGEST])
        if numbers.shape != (self._firsts[-1],) or self._digest != _digest(shards, numbers[DIGEST:]):
            raise ValueError(f"{self.path} is no index of these shards")
        firsts, ends = self._firsts[:-1], self._firsts[1:] - 1
        rising = numbers[1:] > numbers[:-1]
        rising[ends[:-1]] = True  # the next tar begins anew
        if not rising[DIGEST:].all() or numbers[firsts].any() or (_filled(numbers[ends]) != sizes).any():
            raise ValueError(f"{self.path} does not fit the shards")

    @property
    def numbers(self) -> NDArray[np.uint32]:
        """All numbers of the file.

        Raises:
            ValueError: If it holds no such numbers, or others than before.
        """
        if self._numbers is None:
            try:
                numbers = from_npy(memoryview(np.memmap(self.path, np.uint8, mode="r")))
            except ValueError as error:
                raise ValueError(f"{self.path} is damaged ({error}); start again, or delete it") from error
            if numbers.ndim != 1 or numbers.dtype != "<u4" or self._digest not in (None, bytes(numbers[:DIGEST])):
                raise ValueError(f"{self.path} was replaced while it was in use; start again")
            self._numbers = numbers
        return self._numbers

    def places(self, number: int) -> Places:
        """Return the places of the samples of one of the shards."""
        first, end = self._firsts[number : number + 2].tolist()
        return Places(self, first, end - first)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_numbers": None}  # each process maps the file itself


def open_index(folder: Path, shards: Sequence[Shard]) -> Index | None:
    """Return the index of a folder; None if it has none that speaks for its shards.

    An older folder has none, and one that somebody changed has a stale one. Then the headers of its tars say the same.
    """
    with suppress(ValueError, OSError):
        return Index(folder, shards)
    return None


def write_index(folder: Path, manifest: Manifest) -> None:
    """Write the index of a folder whose tars are complete, in one step; a function of the tars and manifest alone.

    Folders whose tars hold blocks, or members of another kind than ours, get none.

    Raises:
        FileNotFoundError: If a tar is gone.

    Example:
        >>> import tempfile
        >>> from ddt_data import ShardWriter
        >>> folder = Path(tempfile.mkdtemp(), "shards")
        >>> with ShardWriter(folder) as writer:  # which calls it
        ...     for key in ("fox", "bell"):
        ...         writer.write({"key": key, "text": f"a {key}"})
        >>> np.load(folder / INDEX)[DIGEST:].tolist()
        [0, 2, 4]
    """
    numbers = index_of(folder, manifest.shards)
    if numbers is None:
        (folder / INDEX).unlink(missing_ok=True)
        return
    part = folder / f".{INDEX}.{os.getpid()}.part"
    part.write_bytes(npy(numbers))
    os.replace(part, folder / INDEX)


def index_of(folder: Path, shards: Sequence[Shard]) -> NDArray[np.uint32] | None:
    """Return the numbers of the index that tars should have, by their headers; None if they can have none.

    Raises:
        FileNotFoundError: If a tar is gone.
    """
    found = []
    for shard in shards:
        places, size = find_places(folder / shard.name), (folder / shard.name).stat().st_size
        if places is None or len(places) != shard.samples + 1 or _filled(places[-1:]) != size:
            return None
        found.append(places)
    numbers = np.concatenate(found)
    return np.concatenate([np.frombuffer(_digest(shards, numbers), "<u4"), numbers])


def find_places(path: Path) -> NDArray[np.uint32] | None:
    """Walk the headers of a tar of plain files whose samples stand one after another, and hold no blocks.

    Returns:
        Where each sample begins and the last ends, in blocks of 512 bytes, [samples + 1]; None for any other tar.
    """
    places, end, key, keys, extensions = [], 0, None, set(), set()
    try:
        with open(path, "rb") as file:
            while (header := file.read(BLOCKSIZE)) != bytes(BLOCKSIZE):
                name, extension, size = read_header(header)
                if name != key:
                    if name in keys:
                        return None
                    key, extensions = name, set()
                    keys.add(name)
                    places.append(end)
                if extension in extensions or extension.startswith(BLOCK_PREFIX):
                    return None
                extensions.add(extension)
                end += blocks_of(size)
                file.seek(end * BLOCKSIZE)
        return np.array([*places, end], "<u4") if places else None
    except (ValueError, OverflowError):
        return None


def read_header(header: bytes) -> tuple[str, str, int]:
    """Return the key, the extension and the size in bytes of a member, from a header of the plainest kind.

    Raises:
        ValueError: If it is damaged, or of another kind, such as a link, a long name or one that is not ASCII.

    Example:
        >>> import tarfile
        >>> read_header(tarfile.TarInfo("7.target.png").tobuf())
        ('7', 'target.png', 0)
    """
    plain = header[156:157] == b"0" and header[257:262] == b"ustar" and header[345:346] == b"\0"
    if not (plain and header[0] and header[:100].isascii() and header[135] in b" \0"):
        raise ValueError("it holds no whole file of a plain name")
    # Its checksum is the sum of its bytes, its own eight taken for spaces; Adler-32 holds the sum modulo 65521.
    found = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if (found - int(header[148:154], 8)) % 65521:
        raise ValueError("a header is damaged")
    return read_name(header)


def read_name(header: bytes) -> tuple[str, str, int]:
    """Return the same of a header that was found plain when the index was made, by its first 135 bytes.

    Raises:
        ValueError: If it is none.
    """
    name, size = header[:100].partition(b"\0")[0], header[124:135]
    if not size.isdigit():
        raise ValueError("no member is there")
    key, _, extension = name.decode().partition(".")
    return key, extension, int(size, 8)


def blocks_of(size: int) -> int:
    """Return how many blocks of 512 bytes a member of `size` bytes takes, its header included.

    Example:
        >>> blocks_of(0), blocks_of(512), blocks_of(513)
        (1, 2, 3)
    """
    return 1 + -(-size // BLOCKSIZE)


def _filled(ends: NDArray) -> NDArray[np.int64]:
    """Return the size of tars whose last members end at these places: two empty blocks, then filled up to a record."""
    return -(-(ends.astype(np.int64) + 2) // (RECORDSIZE // BLOCKSIZE)) * RECORDSIZE


def _digest(shards: Sequence[Shard], numbers: NDArray[np.uint32]) -> bytes:
    digest = hashlib.sha256(json.dumps([asdict(shard) for shard in shards], sort_keys=True).encode())
    digest.update(numbers)
    return digest.digest()
