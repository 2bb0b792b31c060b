"""Shard folders: webdataset tars with a manifest, written in one step, read by random access.

A sample is a dict with `key` and any of `image` and `target` (uint8 [H, W, 3]), `text` (str), `meta` (dict), `ids` and
`target_ids` (int64 [K]).
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch.utils.data import Dataset

from ddt_data.images import decode_image, encode_image
from ddt_data.manifest import MANIFEST, Manifest, Shard

Sample = dict[str, Any]
TOKENIZER_FIELDS = {"fingerprint", "codebook_size", "num_tokens"}


class ShardWriter:
    """Write samples into a new shard folder.

    Use it as a context manager. The folder appears, complete, at the end of the block; if the block raises, nothing
    does.

    Args:
        folder: Where to; may exist only if empty.
        samples_per_shard: Samples in one tar.
        source: Where the samples come from, in words, for the manifest.
        image_size: Side of the pictures in pixels, None without pictures.
        tokenizer: For id shards: {"fingerprint": str, "codebook_size": int, "num_tokens": int}.
        image_format: How `image` is stored: "png", "webp" or "jpg". `target` is always a PNG.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: A field is out of range, or (at the end of the block) nothing was written.

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
    ):
        self.folder = Path(folder)
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard ({samples_per_shard}) must be at least 1")
        if tokenizer is not None and set(tokenizer) != TOKENIZER_FIELDS:
            raise ValueError(f"tokenizer {tokenizer} must give exactly: {', '.join(sorted(TOKENIZER_FIELDS))}")
        if (self.folder / MANIFEST).exists():
            raise FileExistsError(f"{self.folder} holds finished shards; delete it or choose another folder")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} is not empty; choose another folder")
        self.samples_per_shard, self.source, self.image_size = samples_per_shard, source, image_size
        self.tokenizer, self.image_format = tokenizer, image_format
        self._part = self.folder.absolute().parent / f".{self.folder.name}.part"
        self._keys: set[str] = set()
        self._skipped: list[dict] = []
        self._shards: list[Shard] = []
        self._tar: Any = None
        self._in_tar = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._part, ignore_errors=True)  # what a killed run left
        self._part.mkdir(parents=True)
        return self

    def write(self, sample: Sample) -> None:
        """Add a sample.

        Raises:
            ValueError: Its key was used before or holds a dot or a slash, it has an unknown field, or its ids do not
                fit the tokenizer.
        """
        key = sample["key"]
        if key in self._keys or not key or set("./") & set(key):
            reason = "was written before" if key in self._keys else "must be a name without dot or slash"
            raise ValueError(f"key {key!r} {reason}")
        if self._tar is None:
            from webdataset import TarWriter

            self._tar = TarWriter(str(self._part / self._shard_name()), encoder=False, mtime=0)
        self._tar.write({"__key__": key, **self._members(sample)})
        self._keys.add(key)
        self._in_tar += 1
        if self._in_tar == self.samples_per_shard:
            self._finish_shard()

    def skip(self, name: str, why: str) -> None:
        """Note in the manifest that something was left out."""
        self._skipped.append({"name": name, "why": why})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._in_tar:
                self._finish_shard()
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def _publish(self) -> None:
        if not self._keys:
            raise ValueError(f"{self.folder}: no sample to write")
        manifest = Manifest(
            samples=len(self._keys),
            shards=tuple(self._shards),
            source=self.source,
            image_size=self.image_size,
            tokenizer=self.tokenizer,
            skipped=tuple(self._skipped),
        )
        manifest.write(self._part)
        os.replace(self._part, self.folder)
        self.manifest = manifest

    def _shard_name(self) -> str:
        return f"{len(self._shards):06d}.tar"

    def _finish_shard(self) -> None:
        self._tar.close()
        with open(self._part / self._shard_name(), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._shards.append(Shard(self._shard_name(), self._in_tar, digest))
        self._tar, self._in_tar = None, 0

    def _members(self, sample: Sample) -> dict[str, bytes]:
        members = {}
        for field, value in sample.items():
            match field:
                case "key":
                    pass
                case "image":
                    members[self.image_format] = encode_image(value, self.image_format)
                case "target":
                    members["target.png"] = encode_image(value)
                case "text":
                    members["txt"] = value.encode()
                case "meta":
                    members["json"] = json.dumps(value, ensure_ascii=False).encode()
                case "ids" | "target_ids":
                    members["ids.npy" if field == "ids" else "target.ids.npy"] = self._encode_ids(sample["key"], value)
                case _:
                    raise ValueError(f"sample {sample['key']!r} has an unknown field {field!r}")
        return members

    def _encode_ids(self, key: str, ids: Any) -> bytes:
        ids = np.asarray(ids, np.int64)
        if self.tokenizer is None:
            raise ValueError(f"sample {key!r} has ids; give the writer their tokenizer")
        count, size = self.tokenizer["num_tokens"], self.tokenizer["codebook_size"]
        if ids.shape != (count,) or ids.min() < 0 or ids.max() >= size:
            raise ValueError(f"ids of {key!r}, shape {ids.shape}, must be {count} integers from 0 to {size - 1}")
        buffer = io.BytesIO()
        np.save(buffer, ids)
        return buffer.getvalue()


class ShardDataset(Dataset):
    """Read a shard folder by random access.

    Opens a tar for each sample it reads, so it may be copied to worker processes and shared by threads.

    Args:
        folder: A finished shard folder.
        tokenizer: Fingerprint of the tokenizer at hand; id shards of another one are refused.

    Raises:
        FileNotFoundError: The folder is missing, empty or unfinished, or a shard is gone.
        ValueError: The manifest cannot be read, a shard does not hold what it says, or the ids are another tokenizer's.
    """

    def __init__(self, folder: str | Path, tokenizer: str | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.read(folder)
        self._check_tokenizer(tokenizer)
        self._samples: list[tuple[Path, str, dict[str, tuple[int, int]]]] = []
        for shard in self.manifest.shards:
            samples = self._index(shard)
            if len(samples) != shard.samples:
                raise ValueError(
                    f"{self.folder / shard.name} holds {len(samples)} samples, the manifest says {shard.samples}; "
                    "copy or pack the folder again"
                )
            self._samples += samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        path, key, members = self._samples[index]
        sample: Sample = {"key": key}
        with open(path, "rb") as file:
            for extension, (offset, size) in members.items():
                file.seek(offset)
                self._decode(sample, extension, file.read(size), f"{path}: {key}.{extension}")
        return sample

    def check(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            ValueError: A shard was changed or damaged.
        """
        for shard in self.manifest.shards:
            with open(self.folder / shard.name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard.sha256:
                raise ValueError(f"{self.folder / shard.name} is damaged (checksum); copy or pack the folder again")

    def _check_tokenizer(self, fingerprint: str | None) -> None:
        if fingerprint is None:
            return
        if self.manifest.tokenizer is None:
            raise ValueError(f"{self.folder} holds no ids; make id shards from it with tokenizer {fingerprint}")
        if self.manifest.tokenizer["fingerprint"] != fingerprint:
            raise ValueError(
                f"{self.folder} holds ids of tokenizer {self.manifest.tokenizer['fingerprint']}, not of {fingerprint}; "
                "make the id shards again with that tokenizer, or use the one that made them"
            )

    def _index(self, shard: Shard) -> list[tuple[Path, str, dict[str, tuple[int, int]]]]:
        """Find the members of each sample: its extensions with offset and size in bytes."""
        path = self.folder / shard.name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the manifest names this shard, but it is gone; copy or pack the folder again"
            )
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is damaged ({error}); copy or pack the folder again") from error
        return [(path, key, members) for key, members in samples.items()]

    def _decode(self, sample: Sample, extension: str, data: bytes, name: str) -> None:
        match extension:
            case "png" | "jpg" | "webp":
                sample["image"] = decode_image(data, name)
            case "target.png":
                sample["target"] = decode_image(data, name)
            case "txt":
                sample["text"] = data.decode()
            case "json":
                sample["meta"] = json.loads(data)
            case "ids.npy":
                sample["ids"] = np.load(io.BytesIO(data), allow_pickle=False)
            case "target.ids.npy":
                sample["target_ids"] = np.load(io.BytesIO(data), allow_pickle=False)
