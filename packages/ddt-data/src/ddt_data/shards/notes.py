"""What is done of a folder that is being made: a note for each task, in `.<name>.part/notes`.

Its name says what is asked most often, `<number>.<digest of the task>.<samples>.<left out>.json`, so that one listing
tells how far a folder of a hundred thousand shards is.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ddt_data.shards.claim import part_of
from ddt_data.shards.jobs import CLAIMS, NOTES, PATIENCE, SHARDS, Watch
from ddt_data.shards.manifest import MANIFEST, Manifest, Shard

Tasks = Callable[[], Iterable[tuple[Any, Any]]]  # gives, in order, (what identifies the task, what it takes to do it)


@dataclass(frozen=True)
class Made:
    """What became of one task: a shard, unless all was left out, and {"name", "why"} of what was."""

    shard: Shard | None
    skipped: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Note:
    """That a task is done."""

    number: int
    digest: str
    samples: int
    skipped: int  # inputs that were left out

    @classmethod
    def of(cls, number: int, digest: str, made: Made) -> Self:
        """Return the note of what became of a task."""
        return cls(number, digest, made.shard.samples if made.shard else 0, len(made.skipped))

    def file(self, part: Path) -> Path:
        """Return where it is written."""
        return part / NOTES / f"{name_of(self.number)}.{self.digest}.{self.samples}.{self.skipped}.json"

    def write(self, part: Path, beside: Path, made: Made) -> None:
        """Write it, with what became of the task, for the job whose folder is `beside`."""
        about = {"shard": made.shard and asdict(made.shard), "skipped": list(made.skipped), "job": beside.name}
        temporary = beside / self.file(part).name
        temporary.write_text(json.dumps(about), encoding="utf-8")
        os.replace(temporary, self.file(part))

    def read(self, part: Path) -> tuple[Made, str]:
        """Return what became of the task, and the job that did it."""
        about = json.loads(self.file(part).read_text(encoding="utf-8"))
        return Made(about["shard"] and Shard(**about["shard"]), tuple(about["skipped"])), about["job"]


def list_notes(part: Path) -> dict[int, Note]:
    """Return all notes by the number of the task."""
    names = os.listdir(part / NOTES) if (part / NOTES).is_dir() else []
    notes = (name.split(".") for name in names)
    found = (Note(int(number), digest, int(samples), int(skipped)) for number, digest, samples, skipped, _ in notes)
    return {note.number: note for note in found}


def forget_others(part: Path, tasks: Tasks) -> None:
    """Remove notes of tasks that are not these any more, and of shards that are gone."""
    notes = list_notes(part)
    if notes:
        digests = dict(enumerate(digest_of(identity) for identity, _ in tasks()))
        tars = set(os.listdir(part / SHARDS))
        for number, note in notes.items():
            if digests.get(number) != note.digest or (note.samples and f"{name_of(number)}.tar" not in tars):
                note.file(part).unlink(missing_ok=True)


def begun(folder: str | Path, tasks: Tasks) -> bool:
    """Return whether shards of these tasks wait beside an unfinished folder, for `build` to go on with.

    Example:
        >>> begun("nowhere", lambda: [("first", None)])
        False
    """
    notes = list_notes(part_of(Path(folder)))
    numbered = enumerate(tasks()) if notes else ()
    return any(n in notes and notes[n].digest == digest_of(identity) for n, (identity, _) in numbered)


@dataclass(frozen=True)
class Status:
    """How far a folder is."""

    complete: bool  # it is in place
    samples: int  # that are done
    skipped: int  # inputs that were left out
    jobs: int  # commands that are at it
    rate: float  # samples a second of all of them together; 0 where nothing tells it


def status_of(folder: str | Path) -> Status:
    """Return how far a folder is, without disturbing those who make it.

    The rate is that at which the jobs have made a shard so far, times the shards that they are at.

    Example:
        >>> status_of("nowhere")
        Status(complete=False, samples=0, skipped=0, jobs=0, rate=0.0)
    """
    folder, part = Path(folder), part_of(Path(folder))
    if (folder / MANIFEST).is_file():
        manifest = Manifest.read(folder)
        return Status(True, manifest.samples, len(manifest.skipped), 0, 0.0)
    watch, notes = Watch(part), list_notes(part)
    jobs = {job for job, about in watch.jobs().items() if time.time() - about["touched"] < PATIENCE}
    made, seconds = (sum(each) for each in zip((0, 0.0), *map(watch.made, jobs), strict=True))
    rate = 0.0
    if seconds:
        claimed = {int(claim.partition(".")[0]) for claim in os.listdir(part / CLAIMS) if claim[0].isdigit()}
        rate = made / seconds * sum(watch.holder(name_of(number))[0] in jobs for number in claimed - notes.keys())
    samples, skipped = (sum(getattr(note, name) for note in notes.values()) for name in ("samples", "skipped"))
    return Status(False, samples, skipped, len(jobs), rate)


def digest_of(identity: Any) -> str:
    """Return 16 hex digits that tell one task from another."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def name_of(number: int) -> str:
    """Return the name of a task's shard and claim, without ending."""
    return f"{number:06d}"
