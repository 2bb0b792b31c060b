"""What a run was begun with: digests of its data and models, and what was changed since, in `origin.json`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Self

from ddt_apps.run.atomic import writing
from ddt_apps.run.settings import RunSettings
from ddt_data.shards.manifest import MANIFEST, checksum
from ddt_data.shards.mixture import folders_and_shares
from ddt_data.shards.remote import is_remote, open_folder

PARTS = ("tokenizer", "decoder", "model")  # of a run, that others start from
MODEL_FILES = {".safetensors", ".json", ".bin", ".gguf", ".model", ".txt", ".jinja", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class Source:
    """Something that a run starts from."""

    setting: str  # that names it
    named: str  # the folder, file, Hub id or word
    digest: str  # of what it holds; "" for what is no folder or file here
    share: float | None = None  # of the data

    def same(self, other: "Source | None") -> bool:
        """Return whether another one holds the same; of one that is gone, whether it has the same name."""
        if other is None or self.share != other.share:
            return False
        return self.digest == other.digest if other.digest else self.named == other.named


@dataclass(frozen=True)
class Origin:
    """What `origin.json` says."""

    verb: str  # that began the run
    precision: str  # in which it computes
    sources: tuple[Source, ...] = ()
    # From which step its networks are compiled; "off", or "auto" as long as that is not decided.
    compiled_from: int | str = "off"
    changes: tuple[dict, ...] = ()  # {"step", "setting", "from", "to"} of settings that were changed since

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the record of a run.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            sources = tuple(Source(**source) for source in found.pop("sources"))
            return cls(**{**found, "sources": sources, "changes": tuple(found["changes"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged; delete it, and the run goes on with what it finds") from error

    def write(self, file: Path) -> None:
        """Write the record."""
        with writing(file) as part:
            part.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def compare(self, now: tuple[Source, ...], folder: Path) -> None:
        """Refuse other sources than those that the run in `folder` was begun with.

        Raises:
            ValueError: If one holds something else by now; names it.
        """
        for setting in dict.fromkeys(source.setting for source in self.sources + now):
            ours, theirs = ([each for each in some if each.setting == setting] for some in (self.sources, now))
            for old, new in zip_longest(ours, theirs):
                if old is None or not old.same(new):
                    raise ValueError(
                        f"{folder} was begun with {setting}={_named(old)}, {_other(old, new)}; bring back what it had, "
                        f"use another name=..., or delete {folder} to start over"
                    )


def sources_of(config: RunSettings) -> tuple[Source, ...]:
    """Return what a run with these settings starts from."""
    return tuple(_sources(config))


def digest(named: str | Path) -> str:
    """Return 16 hex digits of what decides a shard folder, a run, a model folder or a file; "" where there is none.

    Names and places do not count, nor does what a run holds beside its model.

    Example:
        >>> digest("prose")
        ''
    """
    path = Path(named)
    if path.is_file():
        return checksum(path)[:16]
    if is_remote(named) or (path / MANIFEST).is_file():
        manifest = open_folder(named)[1]
        space = {name: value for name, value in (manifest.latents or {}).items() if name != "vae"}
        return _digest([manifest.tokenizer, space, [(shard.samples, shard.sha256) for shard in manifest.shards]])
    folders = [path / part for part in PARTS if (path / part).is_dir()] or [path]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in MODEL_FILES)
    found = [(file.relative_to(path).as_posix(), checksum(file)) for file in files if file.is_file()]
    return _digest(found) if found else ""


def _sources(config: RunSettings) -> Iterator[Source]:
    for setting in config.sources:
        value = getattr(config, setting)
        if setting == "data":
            for folder, share in zip(*folders_and_shares(value), strict=True):
                yield Source(setting, folder, digest(folder), share)
        elif value:
            yield Source(setting, str(value), digest(value))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _named(source: Source | None) -> str:
    if source is None:
        return "null"
    return source.named if source.share is None else f"{source.named}:{source.share:g}"


def _other(old: Source | None, new: Source | None) -> str:
    if _named(old) != _named(new):
        return f"not {_named(new)}" + (", which holds something else" if old and new and new.digest else "")
    return f"which holds something else now ({old.digest or 'nothing'} then, {new.digest} now)"
