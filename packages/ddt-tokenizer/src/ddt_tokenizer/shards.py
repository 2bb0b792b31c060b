"""Shard folders: webdataset tars with a `manifest.json` that is written last. Pictures are read, ids are written.

A sample is its key and its members by extension: `png|jpg|webp` (picture), `target.png` (the edited picture), `txt`,
`json`, `ids.npy` and `target.ids.npy` (int64 [K]).
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

FORMAT = "ddt-shards-1"
BLOCKS = "ddt-shards-2"  # the ids of a tar in one member, block.ids.npy [N, K]
MANIFEST = "manifest.json"
Members = dict[str, bytes]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read what a shard folder says about itself.

    Raises:
        FileNotFoundError: It is missing or unfinished.
        ValueError: It is of another format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so '{folder}' is unfinished or no shard folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); make the shards again") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, BLOCKS):
        raise ValueError(f"{path} is not of format {FORMAT!r}; make the shards again")
    return manifest


def read_shards(folder: str | Path) -> Iterator[tuple[str, Members]]:
    """Read the samples of a shard folder in order, each shard after a look at its checksum.

    Raises:
        FileNotFoundError: The folder is unfinished or a shard is gone.
        ValueError: A shard was changed or damaged.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp(), "ids")
        >>> with IdShardWriter(folder, {"fingerprint": "f", "codebook_size": 8, "num_tokens": 3}) as writer:
        ...     writer.write("0", {"txt": b"a fox"}, {"ids": torch.tensor([1, 2, 7])})
        >>> [(key, sorted(members)) for key, members in read_shards(folder)]
        [('0', ['ids.npy', 'txt'])]
    """
    for shard in read_manifest(folder)["shards"]:
        path = Path(folder) / shard["name"]
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                raise ValueError(f"{path} is damaged (checksum); copy or make the folder again")
        key, members = None, {}
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                this, _, extension = member.name.partition(".")
                if this != key and key is not None:
                    yield key, members
                    members = {}
                key = this
                members[extension] = tar.extractfile(member).read()
        if key is not None:
            yield key, members


def read_ids(folder: str | Path) -> np.ndarray:
    """Read the ids int64 [N, K] of an id shard folder, targets of edits left out.

    Raises:
        ValueError: It holds no ids.
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


class IdShardWriter:
    """Write ids, with what else belongs to a sample, into a new shard folder.

    Use it as a context manager: the folder appears, complete, at the end of the block, or not at all.

    Args:
        folder: Where to; may exist only if empty.
        tokenizer: {"fingerprint": str, "codebook_size": int, "num_tokens": int}.
        source: Where the samples come from, in words.
        samples_per_shard: Samples in one tar.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: (at the end of the block) nothing was written.
    """

    def __init__(
        self, folder: str | Path, tokenizer: dict[str, Any], source: str = "", samples_per_shard: int = 10_000
    ):
        self.folder, self.tokenizer, self.source = Path(folder), tokenizer, source
        self.samples_per_shard = samples_per_shard
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} exists and is not empty; choose another folder")
        self._part = self.folder.absolute().parent / f".{self.folder.name}.part"
        self._shards: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self._tar: tarfile.TarFile | None = None
        self._in_tar = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._part, ignore_errors=True)  # what a killed run left
        self._part.mkdir(parents=True)
        return self

    def write(self, key: str, members: Members, ids: dict[str, Tensor]) -> None:
        """Add a sample: its key, what is passed on, and ids int64 [K] under "ids" and, of edits, "target.ids"."""
        if self._tar is None:
            self._tar = tarfile.open(self._part / self._name(), "w")  # noqa: SIM115 (closed with its shard)
        for field, row in ids.items():
            buffer = io.BytesIO()
            np.save(buffer, row.cpu().numpy())
            members = {**members, f"{field}.npy": buffer.getvalue()}
        for extension, data in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")  # no time, owner or mode of this machine
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
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
            if self._tar is not None:
                self._finish_shard()
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def _name(self) -> str:
        return f"{len(self._shards):06d}.tar"

    def _finish_shard(self) -> None:
        self._tar.close()
        with open(self._part / self._name(), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._shards.append({"name": self._name(), "samples": self._in_tar, "sha256": digest})
        self._tar, self._in_tar = None, 0

    def _publish(self) -> None:
        if not self._shards:
            raise ValueError(f"{self.folder}: there is no sample to write")
        manifest = {
            "samples": sum(shard["samples"] for shard in self._shards),
            "shards": self._shards,
            "source": self.source,
            "image_size": None,
            "tokenizer": self.tokenizer,
            "skipped": self._skipped,
            "format": FORMAT,
        }
        (self._part / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._part.replace(self.folder)
