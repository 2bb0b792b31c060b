"""One tar of a shard folder: written in one step, its members found without unpacking."""

import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from ddt_data.shards.block_writing import BLOCK_PREFIX, Sample
from ddt_data.shards.index import BLOCKSIZE, INDEX, Places, blocks_of, find_places, read_name
from ddt_data.shards.manifest import Shard, checksum
from ddt_data.shards.members import check_fields, decode_member, encode_members

NAME = 500  # characters of a member's name at most; ours have a dozen


class TarShardWriter:
    """Write samples into one tar, a member for each field; it takes its name when it is closed.

    Args:
        path: The tar to make; an older one is replaced.
        image_format: See `ShardWriter`, as of `tokenizer`.

    Example:
        >>> import tempfile
        >>> writer = TarShardWriter(Path(tempfile.mkdtemp(), "000000.tar"))
        >>> writer.write({"key": "0", "text": "a fox"})
        >>> writer.close().samples
        1
    """

    def __init__(self, path: Path, image_format: str = "png", tokenizer: dict | None = None):
        from webdataset import TarWriter

        self.path, self.image_format, self.tokenizer = path, image_format, tokenizer
        self.samples = 0
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._tar = TarWriter(str(self._part), encoder=False, mtime=0)  # no time or owner: equal samples, equal bytes

    def write(self, sample: Sample) -> None:
        """Add a sample.

        Raises:
            ValueError: If it has an unknown field, or its ids do not fit the tokenizer.
        """
        self._tar.write({"__key__": sample["key"], **encode_members(sample, self.image_format, self.tokenizer)})
        self.samples += 1

    def close(self) -> Shard | None:
        """Finish the tar; return its name, count and checksum, or None, and leave no tar, if nothing was written."""
        self._tar.close()
        if not self.samples:
            self._part.unlink()
            return None
        digest = checksum(self._part)
        os.replace(self._part, self.path)
        return Shard(self.path.name, self.samples, digest)

    def abort(self) -> None:
        """Remove what was written."""
        self._tar.close()
        self._part.unlink(missing_ok=True)


Spans = dict[str, tuple[int, int]]  # offset and size in bytes of the members of a sample, by extension


class WalkedTar:
    """Where the members of a tar are, whatever its kind and their order, by a walk over all headers.

    Raises:
        ValueError: If it is damaged.
    """

    def __init__(self, path: Path):
        rows: dict[bytes, int] = {}
        kinds: dict[str, int] = {}
        members: dict[tuple[int, int], tuple[int, int]] = {}
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as tar:
                for info in tar:
                    whole = info.isreg() and info.sparse is None and 0 <= info.size <= size - info.offset_data
                    if not whole or len(info.name) > NAME:
                        raise ValueError(f"{info.name!r:.80} is no whole file of a plain name")
                    key, _, extension = info.name.partition(".")
                    place = rows.setdefault(key.encode(), len(rows)), kinds.setdefault(extension, len(kinds))
                    if place in members:
                        raise ValueError(f"it holds {info.name!r} twice")
                    members[place] = info.offset_data, info.size
        except (tarfile.TarError, EOFError, OverflowError, RecursionError) as error:
            raise ValueError(str(error)) from error
        self.extensions = list(kinds)
        # Arrays instead of lists of objects: worker processes then share their memory.
        self._keys = np.array([*rows] or [b""], dtype=bytes)
        table = np.array([(*place, *span) for place, span in members.items()], np.int64).reshape(-1, 4)
        self._members = table[np.argsort(table[:, 0], kind="stable")]
        self._starts = np.searchsorted(self._members[:, 0], np.arange(len(rows) + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def find(self, index: int) -> tuple[str, Spans]:
        """Return the key of a sample, and where its members are."""
        rows = self._members[self._starts[index] : self._starts[index + 1]]
        spans = {self.extensions[kind]: (int(offset), int(size)) for _, kind, offset, size in rows}
        return self._keys[index].decode(), spans


class TarShard:
    """Samples of one tar by random access, a member for each field.

    Maps the file at its first use in a process, so it may be handed to worker processes.

    Args:
        max_pixels: That a picture in it may have; see `Manifest`.
        tokenizer: Of its ids, as the manifest says.
        places: Of its samples, if an index tells them; else its headers are read.

    Raises:
        FileNotFoundError: If the tar is gone.
        ValueError: If it is damaged.
    """

    def __init__(
        self, path: Path, max_pixels: int | None = None, tokenizer: dict | None = None, places: Places | None = None
    ):
        self.path, self.max_pixels, self.tokenizer = path, max_pixels, tokenizer
        self._buffer: memoryview | None = None
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the manifest names this shard, but it is gone; copy or pack the folder again"
            )
        self._places = find_places(path) if places is None else places
        self._walked: WalkedTar | None = None
        if self._places is None:
            try:
                self._walked = WalkedTar(path)
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}); copy or pack the folder again") from error

    def __len__(self) -> int:
        return len(self._places) - 1 if self._walked is None else len(self._walked)

    def __getitem__(self, index: int) -> Sample:
        key, spans = self._find(index)
        sample: Sample = {"key": key}
        for extension, (offset, size) in spans.items():
            decode_member(
                sample, extension, self.read(offset, size), f"{self.path}: {key}.{extension}", self.max_pixels
            )
        return check_fields(sample, self.tokenizer, f"{self.path}: sample {key}")

    @property
    def holds_block(self) -> bool:
        """Whether its members hold many samples each; `BlockShard` then reads them."""
        found = () if self._walked is None else self._walked.extensions
        return any(extension.startswith(BLOCK_PREFIX) for extension in found)

    def spans(self, index: int) -> Spans:
        """Return offset and size in bytes of each member of a sample, by extension."""
        return self._find(index)[1]

    def _find(self, index: int) -> tuple[str, Spans]:
        if self._walked is not None:
            return self._walked.find(index)
        place, end = self._places[index : index + 2].tolist()
        key, spans = "", {}
        try:
            while place < end:
                at = place * BLOCKSIZE
                name, extension, size = read_name(self.read(at, 135))
                if extension in spans or (spans and name != key):
                    break
                key, spans[extension] = name, (at + BLOCKSIZE, size)
                place += blocks_of(size)
            if place != end:
                raise ValueError(f"sample {index} is not where {INDEX} says")
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged ({error}); copy or pack the folder again") from error
        return key, spans

    def read(self, offset: int, size: int) -> bytes:
        """Read some bytes of the tar."""
        return bytes(self.buffer[offset : offset + size])

    @property
    def buffer(self) -> memoryview:
        """The bytes of the tar, mapped."""
        if self._buffer is None:
            # Not Python's mmap: that keeps each file open, and folders have more shards than a process may open files.
            size = self.path.stat().st_size
            self._buffer = memoryview(torch.from_file(str(self.path), size=size, dtype=torch.uint8).numpy())
        return self._buffer

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_buffer": None}
