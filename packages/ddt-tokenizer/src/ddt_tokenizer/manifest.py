# Copied from packages/ddt-data/src/ddt_data/shards/manifest.py
"""What a shard folder says about itself: `manifest.json`."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

FORMAT = "ddt-shards-1"
BLOCKS = "ddt-shards-2"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar of a shard folder."""

    name: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a shard folder; its presence says that the folder is finished.

    Example:
        >>> Manifest(samples=0, shards=()).format
        'ddt-shards-1'
    """

    samples: int
    shards: tuple[Shard, ...]
    source: str = ""  # where the samples came from, in words
    licence: str = ""  # of all of it; `parts` have their own
    image_size: int | tuple[int, int] | None = None  # side of the pictures in pixels, or (width, height); None without
    tokenizer: dict | None = None  # of id shards: fingerprint, codebook_size, num_tokens
    latents: dict | None = None  # where samples hold latents: of which space
    skipped: tuple[dict, ...] = field(default=())  # {"name", "why"} of what was left out
    parts: tuple[dict, ...] = field(default=())  # {"name", "samples", "source", "licence"} of what it was made from
    format: str = FORMAT  # FORMAT, or BLOCKS where members hold many samples each

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the manifest of a finished shard folder.

        Raises:
            FileNotFoundError: If the folder is missing, empty or unfinished.
            ValueError: If the file is no manifest, or one of another format.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such shard folder; make shards there first")
        if not (folder / MANIFEST).is_file():
            state = (
                "holds no manifest.json, so it is unfinished or no shard folder"
                if any(folder.iterdir())
                else "is empty"
            )
            raise FileNotFoundError(f"{folder} {state}; delete it and make it again")
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / MANIFEST}: not JSON ({error}); make the folder again") from error
        known = {entry.name for entry in fields(cls)}
        form = found.get("format") if isinstance(found, dict) else None
        if form not in (FORMAT, BLOCKS) or not {"samples", "shards"} <= set(found) <= known:
            raise ValueError(f"{folder / MANIFEST}: format {form!r} is not {FORMAT!r} or {BLOCKS!r}; make it again")
        shards = tuple(Shard(**shard) for shard in found["shards"])
        listed = {name: tuple(found.get(name, ())) for name in ("skipped", "parts")}
        if isinstance(found.get("image_size"), list):
            found["image_size"] = tuple(found["image_size"])
        return cls(**{**found, **listed, "shards": shards})

    def write(self, folder: str | Path) -> None:
        """Write the manifest into a folder in one step."""
        part = Path(folder, f".{MANIFEST}.{os.getpid()}.part")
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="replace")  # names of files may hold what is no UTF-8
        os.replace(part, Path(folder, MANIFEST))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
