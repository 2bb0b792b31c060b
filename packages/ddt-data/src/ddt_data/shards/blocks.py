"""Read blocks, shards whose members hold many samples each; `block_writing.py` says how they are laid out."""

import io
import json

import numpy as np
from numpy.typing import NDArray

from ddt_data.shards.block_writing import ARRAYS, BLOCK_PREFIX, Sample
from ddt_data.shards.tar_shard import TarShard


class BlockShard:
    """Samples of a block by random access; what `TarShard` is for one member a field.

    Raises:
        ValueError: If the block is damaged.
    """

    def __init__(self, tar: TarShard):
        self.tar = tar
        spans = tar.spans(0)
        self._views: dict[str, NDArray] = {}
        try:
            self._words = spans[f"{BLOCK_PREFIX}words.jsonl"][0]
            self._arrays = {
                name[len(BLOCK_PREFIX) : -len(".npy")]: _array_at(tar, at)
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
