"""What is done of a folder that is being made: a note for each task, in `.<name>.part/notes`."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddt_data.shards.claim import part_of
from ddt_data.shards.jobs import NOTES, PATIENCE, SHARDS, Watch
from ddt_data.shards.manifest import MANIFEST, Manifest

Tasks = Callable[[], Iterable[tuple[Any, Any]]]  # gives, in order, (what identifies the task, what it takes to do it)


@dataclass(frozen=True)
class Status:
    """How far a folder is."""

    complete: bool  # it is in place
    samples: int  # that are done
    skipped: int  # inputs that were left out
    jobs: int  # commands that are at it
    rate: float  # samples a second of all of them together; 0 where nothing tells it


def status_of(folder: str | Path, tasks: Tasks) -> Status:
    """Return how far a folder is, without disturbing those who make it.

    The rate is that at which the shards of the jobs that are alive were made, times the shards they are at now.

    Example:
        >>> status_of("nowhere", lambda: [("first", None)])
        Status(complete=False, samples=0, skipped=0, jobs=0, rate=0.0)
    """
    folder, part = Path(folder), part_of(Path(folder))
    if (folder / MANIFEST).is_file():
        manifest = Manifest.read(folder)
        return Status(True, manifest.samples, len(manifest.skipped), 0, 0.0)
    watch = Watch(part)
    jobs = {job for job, about in watch.jobs().items() if time.time() - about["touched"] < PATIENCE}
    notes, at_work = [], 0
    for number, (identity, _) in enumerate(tasks()):
        if note := read_note(part, number, digest_of(identity)):
            notes.append(note)
        else:
            at_work += watch.holder(name_of(number))[0] in jobs
    telling = [note for note in notes if note["job"] in jobs] or notes
    seconds = sum(note["seconds"] for note in telling)
    rate = at_work * sum(note["samples"] for note in telling) / seconds if seconds else 0.0
    skipped = sum(len(note["skipped"]) for note in notes)
    return Status(False, sum(note["samples"] for note in notes), skipped, len(jobs), rate)


def begun(folder: str | Path, tasks: Tasks) -> bool:
    """Return whether shards of these tasks wait beside an unfinished folder, for `build` to go on with.

    Example:
        >>> begun("nowhere", lambda: [("first", None)])
        False
    """
    part = part_of(Path(folder))
    return any(read_note(part, number, digest_of(identity)) for number, (identity, _) in enumerate(tasks()))


def read_note(part: Path, number: int, digest: str | None = None) -> dict | None:
    """Return the note of a task that is done; with a digest, only if it was that one.

    Returns:
        `task` (its digest), `samples`, `shard`, `skipped`, `job` and `seconds`; None if it is not done.
    """
    try:
        note = json.loads((part / NOTES / f"{name_of(number)}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    there = note["shard"] is None or (part / SHARDS / note["shard"]["name"]).is_file()
    return note if there and digest in (None, note["task"]) else None


def digest_of(identity: Any) -> str:
    """Return a hash of what identifies a task."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def name_of(number: int) -> str:
    """Return the name of a task's shard, note and claim, without ending."""
    return f"{number:06d}"
