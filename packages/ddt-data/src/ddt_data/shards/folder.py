"""Shard folders: webdataset tars with a manifest, written in one step, read by random access.

A sample is a dict with `key` and any of `image` and `target` (uint8 [H, W, 3]), `text` (str), `meta` (dict), `ids` and
`target_ids` (int64 [K]), `latents` and `target_latents` (float16 [C, h, w]).
"""

import os
import shutil
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from torch.utils.data import Dataset

from ddt_data.shards.block_writing import Sample
from ddt_data.shards.blocks import BlockShard
from ddt_data.shards.claim import claimed, part_of, refuse_if_taken
from ddt_data.shards.index import Places, open_index, write_index
from ddt_data.shards.manifest import Manifest, Shard, checksum, is_tokenizer
from ddt_data.shards.remote import RemoteFolder, open_folder
from ddt_data.shards.tar_shard import TarShard, TarShardWriter


class ShardWriter:
    """Write samples into a new shard folder.

    Use it as a context manager. The folder appears, complete, at the end of the block; if the block raises, nothing
    does.

    Args:
        folder: Where to; may exist only if empty.
        source: Where the samples come from, in words, for the manifest.
        image_size: Side of the pictures in pixels, None without pictures.
        tokenizer: For id shards: {"fingerprint": str, "codebook_size": int, "num_tokens": int}.
        image_format: How `image` is stored: "png", "webp" or "jpg". `target` is always a PNG.
        parts: See `Manifest`.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or (at the start of the block) another command is making it.
        ValueError: If a field is out of range, or (at the end of the block) nothing was written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "shards")
        >>> with ShardWriter(folder, source="doctest") as writer:
        ...     writer.write({"key": "0", "text": "a fox"})
        >>> ShardDataset(folder)[0]
        {'key': '0', 'text': 'a fox'}
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        samples_per_shard: int = 1000,
        source: str = "",
        image_size: int | None = None,
        tokenizer: dict | None = None,
        image_format: str = "png",
        parts: tuple[dict, ...] = (),
    ):
        self.folder = Path(folder)
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard ({samples_per_shard}) must be at least 1")
        if tokenizer is not None and not is_tokenizer(tokenizer):
            raise ValueError(f"tokenizer {tokenizer} must give fingerprint, codebook_size, num_tokens, and no more")
        refuse_if_taken(self.folder)
        self.samples_per_shard, self.image_format = samples_per_shard, image_format
        self.manifest = Manifest(0, (), source=source, image_size=image_size, tokenizer=tokenizer, parts=parts)
        self._part, self._claim = part_of(self.folder), ExitStack()
        self._keys: set[str] = set()
        self._skipped: list[dict] = []
        self._shards: list[Shard] = []
        self._tar: TarShardWriter | None = None

    def __enter__(self) -> Self:
        self._claim.enter_context(claimed(self.folder))
        shutil.rmtree(self._part)  # what a killed run left
        self._part.mkdir()
        return self

    def write(self, sample: Sample) -> None:
        """Add a sample.

        Raises:
            ValueError: If its key was used before or holds a dot or a slash, it has an unknown field, or its ids do not
                fit the tokenizer.
        """
        key = sample["key"]
        if key in self._keys or not key or set("./") & set(key):
            reason = "was written before" if key in self._keys else "must be a name without dot or slash"
            raise ValueError(f"key {key!r} {reason}")
        if self._tar is None:
            path = self._part / f"{len(self._shards):06d}.tar"
            self._tar = TarShardWriter(path, self.image_format, self.manifest.tokenizer)
        self._tar.write(sample)
        self._keys.add(key)
        if self._tar.samples == self.samples_per_shard:
            self._finish_shard()

    def skip(self, name: str, why: str) -> None:
        """Note in the manifest that something was left out."""
        self._skipped.append({"name": name, "why": why})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._tar is not None:
                self._finish_shard()
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)
            self._claim.close()

    def _publish(self) -> None:
        if not self._keys:
            raise ValueError(f"{self.folder}: no sample to write")
        shards, skipped = tuple(self._shards), tuple(self._skipped)
        self.manifest = replace(self.manifest, samples=len(self._keys), shards=shards, skipped=skipped)
        write_index(self._part, self.manifest)
        self.manifest.write(self._part)
        os.replace(self._part, os.path.realpath(self.folder))

    def _finish_shard(self) -> None:
        if (shard := self._tar.close()) is not None:
            self._shards.append(shard)
        self._tar = None


class ShardDataset(Dataset):
    """Read a shard folder by random access, of a disk or behind a URL (see `remote.py`).

    Maps a tar into memory when a process first reads from it, so it may be handed to worker processes.

    Args:
        tokenizer: Fingerprint of the tokenizer at hand; id shards of another one are refused.

    Raises:
        FileNotFoundError: If the folder is missing, empty or unfinished, or a shard is gone.
        ValueError: If the manifest cannot be read or does not fit a shard, or the ids are another tokenizer's.
    """

    def __init__(self, folder: str | Path, tokenizer: str | None = None):
        self.folder, self.manifest = open_folder(folder)
        if tokenizer is not None and self.manifest.tokenizer is None:
            raise ValueError(f"{self.folder} holds no ids; make id shards from it with tokenizer {tokenizer}")
        if tokenizer is not None and (held := self.manifest.tokenizer["fingerprint"]) != tokenizer:
            raise ValueError(
                f"{self.folder} holds ids of tokenizer {held}, not of {tokenizer}; "
                "make the id shards again with that tokenizer, or use the one that made them"
            )
        if isinstance(self.folder, RemoteFolder):
            self.shards = [_RemoteShard(self.folder, shard) for shard in self.manifest.shards]
        else:
            index = open_index(self.folder, self.manifest.shards)
            self.shards = [
                _open_whole(self.folder, shard, self.manifest, index and index.places(number))
                for number, shard in enumerate(self.manifest.shards)
            ]
        self._ends = np.cumsum([len(shard) for shard in self.shards])
        self._length = int(self._ends[-1])
        if self._length != self.manifest.samples:
            raise ValueError(
                f"{self.folder} holds {self._length} samples, its manifest says {self.manifest.samples}; "
                "copy or pack the folder again"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        return shard[index - int(self._ends[number]) + len(shard)]

    def without_last(self, count: int) -> Self:
        """Return the same dataset without the last samples, which then serve to measure.

        Raises:
            ValueError: If no sample would be left.
        """
        if not 0 <= count < len(self):
            raise ValueError(
                f"held_out ({count}) must be 0 to {len(self) - 1}, of {len(self)} samples in {self.folder}"
            )
        fewer = copy(self)
        fewer._length = len(self) - count
        return fewer

    def check(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            ValueError: If a shard was changed or damaged.
        """
        for shard in self.manifest.shards:
            check_shard(self.folder, shard)


class _RemoteShard:
    """A shard behind a URL, fetched and opened when a process first reads from it."""

    def __init__(self, folder: RemoteFolder, shard: Shard):
        self._folder, self._shard = folder, shard
        self._opened: TarShard | BlockShard | None = None

    def __len__(self) -> int:
        return self._shard.samples

    def __getitem__(self, index: int) -> Sample:
        if self._opened is None:
            self._opened = _open_whole(self._folder, self._shard, self._folder.manifest)
        return self._opened[index]


def _open_whole(
    folder: Path | RemoteFolder, shard: Shard, manifest: Manifest, places: Places | None = None
) -> TarShard | BlockShard:
    """Open a tar that has to hold what the manifest says."""
    opened = open_shard(folder / shard.name, manifest, places)
    if len(opened) != shard.samples:
        raise ValueError(
            f"{folder}/{shard.name} holds {len(opened)} samples, the manifest says {shard.samples}; "
            "copy or pack the folder again"
        )
    return opened


def open_shard(path: Path, manifest: Manifest | None = None, places: Places | None = None) -> TarShard | BlockShard:
    """Open one tar, whichever way its samples are laid out.

    Args:
        manifest: Of its folder; samples that are not as it says are then refused.
        places: Of its samples, by the index of its folder; without it the headers are read.

    Raises:
        FileNotFoundError: If it is gone.
        ValueError: If it is damaged.
    """
    about = (manifest.max_pixels, manifest.tokenizer) if manifest else (None, None)
    tar = TarShard(path, *about, places)
    return BlockShard(tar) if tar.holds_block else tar


def check_shard(folder: Path | RemoteFolder, shard: Shard) -> None:
    """Compare one shard with its checksum.

    Raises:
        ValueError: If it was changed or damaged.
    """
    if checksum(folder / shard.name) != shard.sha256:
        raise ValueError(f"{folder}/{shard.name} is damaged (checksum); copy or pack the folder again")
