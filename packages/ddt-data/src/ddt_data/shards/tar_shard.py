"""One tar of a shard folder: written in one step, its members found without unpacking."""

import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from ddt_data.shards.block_writing import Sample
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


class TarShard:
    """Samples of one tar by random access, a member for each field.

    Maps the file at its first use in a process, so it may be handed to worker processes.

    Args:
        max_pixels: That a picture in it may have; see `Manifest`.
        tokenizer: Of its ids, as the manifest says.

    Raises:
        FileNotFoundError: If the tar is gone.
        ValueError: If it is damaged.
    """

    def __init__(self, path: Path, max_pixels: int | None = None, tokenizer: dict | None = None):
        self.path, self.max_pixels, self.tokenizer = path, max_pixels, tokenizer
        self._buffer: memoryview | None = None
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the manifest names this shard, but it is gone; copy or pack the folder again"
            )
        rows: dict[bytes, int] = {}
        kinds: dict[str, int] = {}
        members: dict[tuple[int, int], tuple[int, int]] = {}
        try:
            size = path.stat().st_size
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
        except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy or pack the folder again") from error
        self.extensions = list(kinds)
        # Arrays instead of lists of objects: worker processes then share their memory.
        self.keys = np.array([*rows] or [b""], dtype=bytes)
        table = np.array([(*place, *span) for place, span in members.items()], np.int64).reshape(-1, 4)
        self._members = table[np.argsort(table[:, 0], kind="stable")]
        self._starts = np.searchsorted(self._members[:, 0], np.arange(len(rows) + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Sample:
        key = self.keys[index].decode()
        sample: Sample = {"key": key}
        for extension, (offset, size) in self.spans(index).items():
            decode_member(
                sample, extension, self.read(offset, size), f"{self.path}: {key}.{extension}", self.max_pixels
            )
        return check_fields(sample, self.tokenizer, f"{self.path}: sample {key}")

    def spans(self, index: int) -> dict[str, tuple[int, int]]:
        """Return offset and size in bytes of each member of a sample, by extension."""
        rows = self._members[self._starts[index] : self._starts[index + 1]]
        return {self.extensions[kind]: (int(offset), int(size)) for _, kind, offset, size in rows}

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
