"""Shard folders: webdataset tars with a `manifest.json` that is written last. Pictures are read, ids are written.

A sample of pictures is its key and its members by extension: `png|jpg|webp` (picture), `target.png` (the edited
picture), `txt`, `json`. Ids are written as blocks, see `block_writing`.
"""

import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_tokenizer.block_writing import Sample, write_block
from ddt_tokenizer.manifest import BLOCKS, Manifest, checksum

SAMPLES = 10_000  # of one tar of ids
Members = dict[str, bytes]


def read_shards(folder: str | Path) -> Iterator[tuple[str, Members]]:
    """Read the samples of a shard folder in order, each shard after a look at its checksum.

    Raises:
        FileNotFoundError: If the folder is unfinished or a shard is gone.
        ValueError: If a shard was changed or damaged.
    """
    for shard in Manifest.read(folder).shards:
        path = Path(folder) / shard.name
        if checksum(path) != shard.sha256:
            raise ValueError(f"{path} is damaged (checksum); copy or make the folder again")
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby(tar, lambda member: member.name.partition(".")[0]):
                yield key, {member.name.partition(".")[2]: tar.extractfile(member).read() for member in members}


def read_ids(folder: str | Path) -> NDArray[np.int64]:
    """Read the ids int64 [N, K] of an id shard folder, targets of edits left out.

    Raises:
        ValueError: If it holds no ids.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "ids")
        >>> tokenizer = {"fingerprint": "f", "codebook_size": 8, "num_tokens": 3}
        >>> write_ids(folder, [{"key": "0", "text": "a fox", "ids": np.array([1, 2, 7])}], tokenizer).samples
        1
        >>> read_ids(folder)
        array([[1, 2, 7]])
    """
    found = [
        np.atleast_2d(np.load(io.BytesIO(members[name]), allow_pickle=False))
        for _, members in read_shards(folder)
        for name in ("ids.npy", "block.ids.npy")
        if name in members
    ]
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
        ValueError: If there is no sample, or ids are not those of the tokenizer.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose another folder")
    part = folder.absolute().parent / f".{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    part.mkdir(parents=True)
    try:
        blocks = enumerate(batches(samples, SAMPLES))
        shards = tuple(write_block(part / f"{number:06d}.tar", block, tokenizer) for number, block in blocks)
        if not shards:
            raise ValueError(f"{folder}: there is no sample to write")
        count = sum(shard.samples for shard in shards)
        manifest = Manifest(count, shards, source, tokenizer=tokenizer, skipped=tuple(skipped), format=BLOCKS)
        manifest.write(part)
        part.replace(folder)
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
