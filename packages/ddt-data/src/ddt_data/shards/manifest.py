"""What a shard folder says about itself: `manifest.json`."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

FORMAT = "ddt-shards-1"
BLOCKS = "ddt-shards-2"
MANIFEST = "manifest.json"


Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _size(value: Any) -> bool:
    return len(value) == 2 and all(map(_count, value)) if isinstance(value, list) else _count(value)


def _tar_name(value: Any) -> bool:
    """Whether it names a file right inside of a folder, on any system."""
    return _text(value) and re.fullmatch(r"\w[\w.-]*", value) is not None


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _part(**checks: Check) -> Check:
    """Whether it is a dict with some of these entries and no other."""
    return lambda value: (
        isinstance(value, dict) and all(name in checks and checks[name](each) for name, each in value.items())
    )


def _dict(**checks: Check) -> Check:
    """Whether it is a dict with just these entries."""
    return lambda value: _part(**checks)(value) and len(value) == len(checks)


def is_tokenizer(value: Any) -> bool:
    """Return whether it says of which tokenizer ids are; a precision stands there only if it was not fp32.

    Example:
        >>> is_tokenizer({"fingerprint": "f", "codebook_size": 8, "num_tokens": 3, "precision": "bf16"})
        True
        >>> is_tokenizer({"fingerprint": "f"})
        False
    """
    needed = {"fingerprint": _text, "codebook_size": _count, "num_tokens": _count}
    return _part(**needed, precision=_text)(value) and set(needed) <= set(value)


FIELDS = {  # what holds of each field of a manifest, which may come from anybody
    "samples": _count,
    "shards": _list(_dict(name=_tar_name, samples=_count, sha256=_text)),
    "source": _text,
    "licence": _text,
    "image_size": _maybe(_size),
    "tokenizer": _maybe(is_tokenizer),
    "latents": _maybe(_part(channels=_count, downscale=_count, shift=_number, scale=_number, vae=_maybe(_text))),
    "skipped": _list(_dict(name=_text, why=_text)),
    "parts": _list(_dict(name=_text, samples=_number, source=_text, licence=_text)),
    "format": _text,
}


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
    tokenizer: dict | None = None  # of id shards: fingerprint, codebook_size, num_tokens, and precision if not fp32
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
        path = folder / MANIFEST
        if not path.is_file():
            state = (
                "is unfinished or no shard folder: it holds no manifest.json" if any(folder.iterdir()) else "is empty"
            )
            raise FileNotFoundError(f"{folder} {state}; pictures are packed into a new folder first (data pack)")
        return cls.parse(path.read_bytes(), path)

    @classmethod
    def parse(cls, text: bytes, path: str | Path) -> Self:
        """Read what a file `manifest.json` holds.

        Args:
            path: Of the file, for errors.

        Raises:
            ValueError: If it is no manifest, or one of another format.
        """
        try:
            found = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}); make the folder again") from error
        form = found.get("format") if isinstance(found, dict) else None
        if form not in (FORMAT, BLOCKS) or not {"samples", "shards"} <= set(found) <= set(FIELDS):
            raise ValueError(f"{path}: format {form!r:.40} is not {FORMAT!r} or {BLOCKS!r}; name a shard folder")
        if wrong := [name for name, value in found.items() if not FIELDS[name](value)]:
            raise ValueError(f"{path}: {wrong[0]!r} is not what a manifest holds there; copy or make the folder again")
        shards = tuple(Shard(**shard) for shard in found["shards"])
        if len({shard.name for shard in shards}) < max(1, len(shards)):
            raise ValueError(f"{path}: 'shards' names none, or one twice; copy or make the folder again")
        listed = {name: tuple(found.get(name, ())) for name in ("skipped", "parts")}
        if isinstance(found.get("image_size"), list):
            found["image_size"] = tuple(found["image_size"])
        return cls(**{**found, **listed, "shards": shards})

    @property
    def max_pixels(self) -> int | None:
        """Pixels that a picture of the folder has; None where that is not told.

        Example:
            >>> Manifest(0, (), image_size=(48, 80)).max_pixels
            3840
        """
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)
        return None if self.image_size is None else sides[0] * sides[1]

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
