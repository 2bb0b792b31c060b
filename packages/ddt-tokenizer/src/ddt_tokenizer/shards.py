"""Shard folders: webdataset tars with a `manifest.json` that is written last. Pictures are read, ids are written.

A sample of pictures is its key and its members by extension: `png|jpg|webp` (picture), `target.png` (the edited
picture), `txt`, `json`. Ids are written as blocks, see `block_writing`.
"""

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_tokenizer.block_writing import Sample, from_npy, write_block
from ddt_tokenizer.claim import claimed
from ddt_tokenizer.manifest import BLOCKS, FORMAT, Manifest, checksum

SAMPLES = 10_000  # of one tar of ids
Members = dict[str, bytes]


def read_shards(folder: str | Path) -> Iterator[tuple[str, Members]]:
    """Read the samples of a shard folder in order, each shard after a look at its checksum.

    Raises:
        FileNotFoundError: If the folder is unfinished or a shard is gone.
        ValueError: If a shard was changed or damaged.
    """
    manifest = Manifest.read(folder)
    for shard in manifest.shards:
        path, count = Path(folder) / shard.name, 0
        if checksum(path) != shard.sha256:
            raise ValueError(f"{path} is damaged (checksum); copy or make the folder again")
        try:
            with tarfile.open(path, "r:") as tar:
                for key, found in groupby(tar, lambda member: member.name.partition(".")[0]):
                    yield key.encode().decode(), _members(tar, found, path.stat().st_size)
                    count += 1
            if manifest.format == FORMAT and count != shard.samples:
                raise ValueError(f"it holds {count} samples, the manifest says {shard.samples}")
        except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy or make the folder again") from error


def _members(tar: tarfile.TarFile, found: Iterable[tarfile.TarInfo], size: int) -> Members:
    """Read the members of one sample in a tar of `size` bytes."""
    members: Members = {}
    for info in found:
        extension = info.name.partition(".")[2]
        whole = info.isreg() and info.sparse is None and 0 <= info.size <= size - info.offset_data
        if not whole or extension in members:
            raise ValueError(f"{info.name!r:.80} is no whole file, or in it twice")
        members[extension] = tar.extractfile(info).read()
    return members


def read_ids(folder: str | Path) -> NDArray[np.int64]:
    """Read the ids int64 [N, K] of an id shard folder, targets of edits left out.

    Raises:
        ValueError: If it holds no ids, or damaged ones.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "ids")
        >>> tokenizer = {"fingerprint": "f", "codebook_size": 8, "num_tokens": 3}
        >>> write_ids(folder, [{"key": "0", "text": "a fox", "ids": np.array([1, 2, 7])}], tokenizer).samples
        1
        >>> read_ids(folder)
        array([[1, 2, 7]])
    """
    found = []
    for key, members in read_shards(folder):
        for name in {"ids.npy", "block.ids.npy"} & set(members):
            rows = np.atleast_2d(from_npy(members[name]))
            if rows.ndim != 2 or rows.dtype.kind not in "iu" or (found and rows.shape[1:] != found[0].shape[1:]):
                raise ValueError(f"{folder}: {key}.{name} does not hold ids as the others do; make the folder again")
            found.append(rows)
    if not found:
        raise ValueError(f"{folder} holds no ids; make id shards from it with: ddt-tokenizer encode")
    return np.concatenate(found).astype(np.int64)


def write_ids(
    folder: str | Path, samples: Iterable[Sample], tokenizer: dict, source: str = "", skipped: Iterable[dict] = ()
) -> Manifest:
    """Write ids, with what else belongs to samples, into a new shard folder, which appears complete or not at all.

    Args:
        samples, tokenizer: See `write_block`.
        source: Where the samples come from, in words.
        skipped: {"name", "why"} of what was left out; read when all samples are written.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or another command is making it.
        ValueError: If there is no sample, or ids are not those of the tokenizer.
    """
    folder = Path(folder)
    with claimed(folder) as part:
        try:
            shutil.rmtree(part)  # what a killed run left
            part.mkdir()
            blocks = enumerate(batches(samples, SAMPLES))
            shards = tuple(write_block(part / f"{number:06d}.tar", block, tokenizer) for number, block in blocks)
            if not shards:
                raise ValueError(f"{folder}: there is no sample to write")
            count = sum(shard.samples for shard in shards)
            manifest = Manifest(count, shards, source, tokenizer=tokenizer, skipped=tuple(skipped), format=BLOCKS)
            manifest.write(part)
            os.replace(part, os.path.realpath(folder))
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return manifest


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Cut items into lists of `size`, the last one of what is left.

    Example:
        >>> list(batches("abc", 2))
        [['a', 'b'], ['c']]
    """
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
