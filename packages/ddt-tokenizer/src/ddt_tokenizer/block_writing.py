# Copied from packages/ddt-data/src/ddt_data/shards/block_writing.py
"""Write blocks: shards whose members hold many samples each, for ids, which are far smaller than the headers of a tar.

A tar holds one block: `<name>.block.words.jsonl` (a line {"key", "text", "meta"} for each sample),
`.block.offsets.npy` (int64 [N + 1], where lines begin), and for each array that samples have, such as ids,
`.block.ids.npy` [M, K] with, unless all have it, `.block.ids.rows.npy` (int32 [N]: its row, or -1).
"""

import io
import json
import math
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Shard, checksum

Sample = dict[str, Any]
BLOCK_PREFIX = "block."  # how the extensions of members begin that hold many samples
WORDS = ("key", "text", "meta")
# The header that numpy gives plain numbers, and nothing else: no objects, and nothing that has to be evaluated.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|][biuf]\d\d?)', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)
ARRAYS = {"ids": "ids", "target_ids": "target.ids", "latents": "latents", "target_latents": "target.latents"}


def write_block(path: Path, samples: Sequence[Sample], tokenizer: dict | None) -> Shard | None:
    """Write samples without pictures into one tar; it takes its name when it is complete.

    Args:
        path: The tar to make.
        samples: With `key` and any of `text`, `meta`, `ids`, `target_ids` (int64 [K]), `latents`, `target_latents`
            (float [C, h, w], kept as float16).
        tokenizer: Of the ids: {"fingerprint": str, "codebook_size": int, "num_tokens": int}.

    Returns:
        Its name, count and checksum; None, and no tar, without samples.

    Raises:
        ValueError: If a field is unknown, two samples share a key, or ids do not fit the tokenizer.

    Example:
        >>> import tempfile
        >>> tokenizer = {"fingerprint": "f", "codebook_size": 8, "num_tokens": 3}
        >>> path = Path(tempfile.mkdtemp(), "000000.tar")
        >>> write_block(path, [{"key": "0", "text": "a fox", "ids": np.array([7, 0, 2])}], tokenizer).samples
        1
        >>> with tarfile.open(path) as tar:
        ...     tar.getnames()
        ['000000.block.ids.npy', '000000.block.offsets.npy', '000000.block.words.jsonl']
    """
    if len({sample["key"] for sample in samples}) != len(samples):
        raise ValueError(f"{path.name}: two samples share a key")
    for sample in samples:
        if unknown := set(sample) - {*WORDS, *ARRAYS}:
            raise ValueError(f"sample {sample['key']!r} has a field that blocks do not hold, {min(unknown)!r}")
    if not samples:
        return None
    members = _words(samples)
    for field in ARRAYS:
        members |= _array(field, samples, tokenizer)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with tarfile.open(part, "w") as tar:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{path.stem}.{BLOCK_PREFIX}{name}")  # no time: equal samples, equal bytes
            info.size, info.mode = len(data), 0o444
            info.uname = info.gname = "bigdata"  # as webdataset writes
            tar.addfile(info, io.BytesIO(data))
    digest = checksum(part)
    os.replace(part, path)
    return Shard(path.name, len(samples), digest)


def _words(samples: Sequence[Sample]) -> dict[str, bytes]:
    rows = ({name: sample[name] for name in WORDS if name in sample} for sample in samples)
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
    return {"words.jsonl": b"".join(lines), "offsets.npy": npy(offsets)}


def _array(field: str, samples: Sequence[Sample], tokenizer: dict | None) -> dict[str, bytes]:
    having = [sample for sample in samples if field in sample]
    if not having:
        return {}
    if field.endswith("ids"):
        smallest = np.min_scalar_type(tokenizer["codebook_size"] - 1) if tokenizer else np.uint16
        stacked = np.stack([checked_ids(s["key"], s[field], tokenizer) for s in having]).astype(smallest)
    else:
        stacked = np.stack([np.asarray(s[field], np.float16) for s in having])
    members = {f"{ARRAYS[field]}.npy": npy(stacked)}
    if len(having) < len(samples):
        has = np.array([field in sample for sample in samples])
        members[f"{ARRAYS[field]}.rows.npy"] = npy(np.where(has, np.cumsum(has) - 1, -1).astype(np.int32))
    return members


def checked_ids(key: str, ids: Any, tokenizer: dict | None) -> NDArray[np.int64]:
    """Return ids [K] as int64 if they are a tokenizer's.

    Raises:
        ValueError: If they are not, or there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(f"sample {key!r} has ids; give the writer their tokenizer")
    ids = np.asarray(ids, np.int64)
    count, size = tokenizer["num_tokens"], tokenizer["codebook_size"]
    if ids.shape != (count,) or ids.min() < 0 or ids.max() >= size:
        raise ValueError(f"ids of {key!r}, shape {ids.shape}, must be {count} integers from 0 to {size - 1}")
    return ids


def npy(array: NDArray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes | memoryview) -> NDArray:
    """Return the numbers that the bytes of a .npy file hold, without a copy.

    Raises:
        ValueError: If it is no such file, or its header speaks of more or less than follows.

    Example:
        >>> from_npy(npy(np.array([[1, 2], [3, 4]]))).tolist()
        [[1, 2], [3, 4]]
    """
    found = HEADER.match(data)
    if found is None or int.from_bytes(found[1], "little") != found.end() - 10:
        raise ValueError("it is no .npy file of plain numbers")
    shape = tuple(int(number) for number in found[4].split(b",") if number.strip())
    try:
        dtype = np.dtype(found[2].decode())
        if math.prod(shape) * dtype.itemsize != len(data) - found.end():
            raise ValueError(f"its header speaks of {shape} values of {dtype}, {len(data) - found.end()} bytes follow")
        return np.frombuffer(data, dtype, offset=found.end()).reshape(shape, order="F" if found[3] == b"True" else "C")
    except (TypeError, OverflowError) as error:
        raise ValueError(f"it is no .npy file of plain numbers ({error})") from error
