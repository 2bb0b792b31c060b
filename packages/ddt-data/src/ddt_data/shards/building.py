"""Make a shard folder shard by shard, in several processes, going on where a killed run stopped.

Each shard is a function of its task alone. It is written to `.<name>.part/` beside a note of the task it came from, so
a second run makes only what is missing or was made from something else. One command at a time makes a folder, and hands
the tasks out to its processes. Ranks that were started together take turns by the shard's number and never talk.
Whoever finds all shards done puts the folder in place.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any

from ddt_data.shards.claim import claimed, part_of, refuse_if_taken
from ddt_data.shards.index import INDEX, write_index
from ddt_data.shards.manifest import MANIFEST, Manifest, Shard

Progress = Callable[[int, int], None]  # (samples done, of; 0 where it is not known)


class NothingLeftError(ValueError):
    """All inputs were left out; `skipped` names them."""

    def __init__(self, folder: Path, skipped: tuple[dict, ...]):
        first = "".join(f"; {entry['name']}: {entry['why']}" for entry in skipped[:3])
        super().__init__(f"{folder}: no sample to write, {len(skipped)} were left out{first}")
        self.skipped = skipped


@dataclass(frozen=True)
class Made:
    """What became of one task: a shard, unless all was left out, and {"name", "why"} of what was."""

    shard: Shard | None
    skipped: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How to make a shard folder. For processes, `make` must be importable by name, or a partial of such.

    Example:
        >>> import tempfile
        >>> from ddt_data import write_block
        >>> def make(path, texts):
        ...     return Made(write_block(path, [{"key": text, "text": text} for text in texts], None))
        >>> plan = Plan(tasks=lambda: [("first", ["a fox"]), ("second", ["a bell"])], make=make)
        >>> build(Path(tempfile.mkdtemp(), "out"), plan).samples
        2
    """

    tasks: Callable[[], Iterable[tuple[Any, Any]]]  # gives, in order, (what identifies the task, what `make` needs)
    make: Callable[[Path, Any], Made]  # writes one shard
    manifest: Manifest = field(default_factory=lambda: Manifest(0, ()))  # what it says besides counts


def build(
    folder: str | Path,
    plan: Plan,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    total: int = 0,
    progress: Progress | None = None,
) -> Manifest | None:
    """Make a shard folder, or this rank's share of it; return the manifest, or None while other ranks are not done.

    Args:
        folder: To make; appears, complete, when the last shard is done.
        workers: Processes on this machine; with one, the work is done in this one.
        rank: Of this process among those that were started with the same plan and folder.
        total: Samples expected, for `progress`.
        progress: Called with (samples done, total).

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or another command is making it.
        ValueError: If `make` refused something, nothing was left to write, or a number is out of range. Finished shards
            are kept for the next run.
    """
    folder = Path(folder)
    if workers < 1 or not 0 <= rank < world_size:
        raise ValueError(f"workers ({workers}) must be at least 1 and rank ({rank}) from 0 to {world_size - 1}")
    report = (lambda done: progress(done, total)) if progress else (lambda done: None)
    with claimed(folder) if world_size == 1 else _shared(folder) as part:
        try:
            if workers == 1:
                _work(part, plan, rank, world_size, report)
            else:
                _in_processes(part, plan, workers, rank, world_size, report)
            return _publish(folder, part, plan)
        except (ValueError, OSError):
            if world_size == 1 and not any(part.glob("*.tar")):
                shutil.rmtree(part, ignore_errors=True)
            raise


def begun(folder: str | Path, tasks: Callable[[], Iterable[tuple[Any, Any]]]) -> bool:
    """Return whether shards of these tasks wait beside an unfinished folder, for `build` to go on with.

    Example:
        >>> begun("nowhere", lambda: [("first", None)])
        False
    """
    notes = ((_note(part_of(Path(folder)), number), identity) for number, (identity, _) in enumerate(tasks()))
    return any(note is not None and note["task"] == _digest(identity) for note, identity in notes)


@contextmanager
def _shared(folder: Path) -> Iterator[Path]:
    """Make the folder that stands in for one that several ranks make together."""
    if not (folder / MANIFEST).exists():  # else another rank has put it in place already
        refuse_if_taken(folder)
    part = part_of(folder)
    part.mkdir(parents=True, exist_ok=True)
    yield part


def _work(part: Path, plan: Plan, rank: int, world_size: int, report: Callable[[int], None]) -> None:
    done = 0
    for number, digest, payload, note in _share(part, plan, rank, world_size):
        done += note["samples"] if note else _make(part, plan.make, number, digest, payload)
        report(done)


def _in_processes(part: Path, plan: Plan, workers: int, rank: int, world_size: int, report: Callable) -> None:
    """Hand the tasks out, each to the next process that is free: none but this one reads the source."""
    done, running = 0, set()
    with ProcessPoolExecutor(workers, _context(), _begin, (plan.make,)) as pool:
        try:
            for number, digest, payload, note in _share(part, plan, rank, world_size):
                if note:
                    done += note["samples"]
                else:
                    if len(running) == workers:
                        ended, running = wait(running, return_when=FIRST_COMPLETED)
                        done += sum(job.result() for job in ended)
                    running.add(pool.submit(_make_in_worker, part, number, digest, payload))
                report(done)
            for job in as_completed(running):
                report(done := done + job.result())
        except BrokenProcessPool as error:
            raise ValueError(
                f"{part}: a worker died, perhaps for lack of memory; run again with fewer workers"
            ) from error


def _context() -> BaseContext:
    """Return how processes begin: not as forks of this one, whose threads, such as torch's, would not survive that.

    Where it is safe they are forks of a fresh one that has loaded torch, once for all of them (webdataset needs torch).
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")  # the default of Python 3.14
    context.set_forkserver_preload(["ddt_data"])
    return context


def _begin(make: Callable[[Path, Any], Made]) -> None:
    """Begin as a worker: it has the plan's `make`, ends with the command, and leaves Ctrl-C to it."""
    global _make_of_worker
    _make_of_worker = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # the command was killed


def _make_in_worker(part: Path, number: int, digest: str, payload: Any) -> int:
    return _make(part, _make_of_worker, number, digest, payload)


def _share(part: Path, plan: Plan, rank: int, world_size: int) -> Iterator[tuple[int, str, Any, dict | None]]:
    """Yield the tasks of a rank: number, digest, what `make` needs, and the note of one that is done."""
    for number, (identity, payload) in enumerate(plan.tasks()):
        if number % world_size == rank:
            digest, note = _digest(identity), _note(part, number)
            yield number, digest, payload, note if note and note["task"] == digest else None


def _make(part: Path, make: Callable[[Path, Any], Made], number: int, digest: str, payload: Any) -> int:
    """Make a shard, and then the note of it; return its samples."""
    made = make(part / f"{number:06d}.tar", payload)
    samples = made.shard.samples if made.shard else 0
    note = {"task": digest, "samples": samples, "shard": made.shard and asdict(made.shard)}
    temporary = part / f".{number:06d}.{os.getpid()}.json"
    temporary.write_text(json.dumps(note | {"skipped": list(made.skipped)}), encoding="utf-8")
    os.replace(temporary, part / f"{number:06d}.json")
    return samples


def _publish(folder: Path, part: Path, plan: Plan) -> Manifest | None:
    digests = [_digest(identity) for identity, _ in plan.tasks()]
    notes = [_note(part, number) for number in range(len(digests))]
    if any(note is None or note["task"] != digest for note, digest in zip(notes, digests, strict=True)):
        # Not all done; or another rank has put the folder in place while we looked.
        return Manifest.read(folder) if (folder / MANIFEST).exists() else None
    skipped = tuple(entry for note in notes for entry in note["skipped"])
    shards = tuple(Shard(**note["shard"]) for note in notes if note["shard"])
    if not shards:
        shutil.rmtree(part, ignore_errors=True)
        raise NothingLeftError(folder, skipped)
    samples = sum(shard.samples for shard in shards)
    manifest = replace(plan.manifest, samples=samples, shards=shards, skipped=skipped)
    try:
        write_index(part, manifest)
        manifest.write(part)
        keep = {MANIFEST, INDEX, *(shard.name for shard in shards)}
        for path in part.iterdir():
            if path.name not in keep:
                path.unlink()
        os.replace(part, os.path.realpath(folder))
    except FileNotFoundError:  # another rank was quicker
        for _ in range(50):
            if (folder / MANIFEST).exists():
                break
            time.sleep(0.1)
        return Manifest.read(folder)
    return manifest


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def _note(part: Path, number: int) -> dict | None:
    try:
        note = json.loads((part / f"{number:06d}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return note if note["shard"] is None or (part / note["shard"]["name"]).is_file() else None
