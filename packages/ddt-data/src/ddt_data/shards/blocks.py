"""Read blocks, shards whose members hold many samples each; `block_writing.py` says how they are laid out."""

import json

import numpy as np
from numpy.typing import NDArray

from ddt_data.shards.block_writing import ARRAYS, BLOCK_PREFIX, WORDS, Sample, from_npy
from ddt_data.shards.members import check_fields
from ddt_data.shards.tar_shard import TarShard


class BlockShard:
    """Samples of a block by random access; what `TarShard` is for one member a field.

    Raises:
        ValueError: If the block is damaged.
    """

    def __init__(self, tar: TarShard):
        self.tar = tar
        self._spans = {name.removeprefix(BLOCK_PREFIX): span for name, span in tar.spans(0).items()}
        self._views: dict[str, NDArray] = {}
        try:
            self._words, size = self._spans["words.jsonl"]
            self._length = len(self._array("offsets")) - 1
            self._check(size)
        except (KeyError, ValueError, TypeError) as error:
            why = f"it holds no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{tar.path} is damaged ({why}); copy or make the folder again") from error

    def _check(self, size: int) -> None:
        """Compare the arrays with one another, and with the `size` of the words in bytes."""
        starts = self._array("offsets")
        fits = len(self.tar) == 1 and starts.ndim == 1 and starts.dtype.kind == "i" and starts[0] == 0
        if not fits or starts.max() != starts[-1] or starts[-1] != size or (np.diff(starts) < 0).any():
            raise ValueError("its offsets are not those of its words")
        for name in ARRAYS.values():
            if f"{name}.npy" in self._spans:
                rows = self._array(f"{name}.rows") if f"{name}.rows.npy" in self._spans else np.arange(self._length)
                count = len(self._array(name))
                if rows.shape != (self._length,) or rows.dtype.kind != "i" or rows.min() < -1 or rows.max() >= count:
                    raise ValueError(f"its {name} are not one for each sample")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        name = f"{self.tar.path}: sample {index}"
        start, end = self._array("offsets")[index : index + 2] + self._words
        try:
            sample = json.loads(self.tar.read(start, end - start))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: its words cannot be read ({error}); copy or make the shards again") from error
        if not isinstance(sample, dict) or not {"key"} <= set(sample) <= set(WORDS):
            raise ValueError(f"{name}: its words are not those of a sample; copy or make the shards again")
        for field, array in ARRAYS.items():
            if f"{array}.npy" in self._spans:
                row = self._array(f"{array}.rows")[index] if f"{array}.rows.npy" in self._spans else index
                if row >= 0:
                    value = self._array(array)[row]
                    ids = field.endswith("ids") and value.dtype.kind == "u"
                    sample[field] = value.astype(np.int64) if ids else np.array(value)
        return check_fields(sample, self.tar.tokenizer, name)

    def _array(self, name: str) -> NDArray:
        if name not in self._views:
            at, size = self._spans[f"{name}.npy"]
            self._views[name] = from_npy(self.tar.buffer[at : at + size])
        return self._views[name]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_views": {}}  # each process maps the file itself
