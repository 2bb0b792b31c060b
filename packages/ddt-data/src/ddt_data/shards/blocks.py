"""Blocks: shards whose members hold many samples each, for ids, which are far smaller than the headers of a tar.

A tar holds one block: `<name>.block.words.jsonl` (a line {"key", "text", "meta"} for each sample),
`.block.offsets.npy` (int64 [N + 1], where lines begin), and for each array that samples have, such as ids,
`.block.ids.npy` [M, K] with, unless all have it, `.block.ids.rows.npy` (int32 [N]: its row, or -1).
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_data.shards.manifest import Shard
from ddt_data.shards.members import ARRAYS, Sample, checked_ids, npy
from ddt_data.shards.tar_shard import BLOCK, TarShard, TarShardWriter


def write_block(path: Path, samples: Sequence[Sample], tokenizer: dict | None) -> Shard | None:
    """Write samples without pictures into one tar.

    Args:
        path: The tar to make.
        samples: With `key` and any of `text`, `meta`, `ids`, `target_ids`, `latents`, `target_latents`.
        tokenizer: Of the ids; see `ShardWriter`.

    Returns:
        Its name, count and checksum; None, and no tar, without samples.

    Raises:
        ValueError: A field is unknown, two samples share a key, or ids do not fit the tokenizer.

    Example:
        >>> import tempfile
        >>> tokenizer = {"fingerprint": "f", "codebook_size": 8, "num_tokens": 3}
        >>> path = Path(tempfile.mkdtemp(), "000000.tar")
        >>> _ = write_block(path, [{"key": "0", "text": "a fox", "ids": np.array([7, 0, 2])}], tokenizer)
        >>> BlockShard(TarShard(path))[0]["ids"]
        array([7, 0, 2])
    """
    keys = [sample["key"] for sample in samples]
    if len(set(keys)) != len(keys):
        raise ValueError(f"{path.name}: two samples share a key")
    for sample in samples:
        if unknown := set(sample) - {"key", "text", "meta", *ARRAYS}:
            raise ValueError(f"sample {sample['key']!r} has a field that blocks do not hold, {min(unknown)!r}")
    lines = [
        json.dumps({name: s[name] for name in ("key", "text", "meta") if name in s}, ensure_ascii=False).encode()
        + b"\n"
        for s in samples
    ]
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
    members = {f"{BLOCK}words.jsonl": b"".join(lines), f"{BLOCK}offsets.npy": npy(offsets)}
    for field, name in ARRAYS.items():
        having = [sample for sample in samples if field in sample]
        if not having:
            continue
        if field.endswith("ids"):
            smallest = np.min_scalar_type(tokenizer["codebook_size"] - 1) if tokenizer else np.uint16
            stacked = np.stack([checked_ids(s["key"], s[field], tokenizer) for s in having]).astype(smallest)
        else:
            stacked = np.stack([np.asarray(s[field], np.float16) for s in having])
        members[f"{BLOCK}{name}.npy"] = npy(stacked)
        if len(having) < len(samples):
            has = np.array([field in sample for sample in samples])
            members[f"{BLOCK}{name}.rows.npy"] = npy(np.where(has, np.cumsum(has) - 1, -1).astype(np.int32))
    writer = TarShardWriter(path)
    if samples:
        writer.write_members(path.stem, members, len(samples))
    return writer.close()


class BlockShard:
    """Samples of a block by random access; what `TarShard` is for one member a field.

    Raises:
        ValueError: The block is damaged.
    """

    def __init__(self, tar: TarShard):
        self.tar = tar
        spans = tar.spans(0)
        self._views: dict[str, NDArray] = {}
        try:
            self._words = spans[f"{BLOCK}words.jsonl"][0]
            self._arrays = {
                name[len(BLOCK) : -len(".npy")]: _array_at(tar, at)
                for name, (at, _) in spans.items()
                if name.endswith(".npy")
            }
            self._length = len(self._array("offsets")) - 1
        except (KeyError, ValueError) as error:
            raise ValueError(f"{tar.path} is damaged ({error}); copy or make the folder again") from error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        start, end = self._array("offsets")[index : index + 2] + self._words
        sample = json.loads(self.tar.read(start, end - start))
        for field, name in ARRAYS.items():
            if name in self._arrays:
                row = self._array(f"{name}.rows")[index] if f"{name}.rows" in self._arrays else index
                if row >= 0:
                    value = self._array(name)[row]
                    sample[field] = value.astype(np.int64) if field.endswith("ids") else np.array(value)
        return sample

    def _array(self, name: str) -> NDArray:
        """View an array in the mapped file."""
        if name not in self._views:
            at, shape, dtype = self._arrays[name]
            count = int(np.prod(shape))
            self._views[name] = np.frombuffer(self.tar.buffer, dtype, count, at).reshape(shape)
        return self._views[name]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_views": {}}  # each process maps the file itself


def _array_at(tar: TarShard, at: int) -> tuple[int, tuple[int, ...], np.dtype]:
    """Read the header of a .npy at an offset of a tar: where its values begin, their shape and type."""
    header = io.BytesIO(tar.read(at, 4096))
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return at + header.tell(), shape, dtype
