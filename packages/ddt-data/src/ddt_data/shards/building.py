"""Make a shard folder shard by shard, in several processes, going on where a killed run stopped.

Each shard is a function of its task alone. It is written to `.<name>.part/` beside a note of the task it came from, so
a second run makes only what is missing or was made from something else. One command at a time makes a folder; its
processes, or ranks that were started together, take turns by the shard's number and never talk. Whoever finds all
shards done puts the folder in place.
"""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ddt_data.shards.claim import claimed, part_of, refuse_if_taken
from ddt_data.shards.index import INDEX, write_index
from ddt_data.shards.manifest import MANIFEST, Manifest, Shard

FAILED = "failed"
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
    """How to make a shard folder. Its functions must be importable by name, or partials of such, for processes.

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
        (part / FAILED).unlink(missing_ok=True)
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


@contextmanager
def _shared(folder: Path) -> Iterator[Path]:
    """Make the folder that stands in for one that several ranks make together."""
    if not (folder / MANIFEST).exists():  # else another rank has put it in place already
        refuse_if_taken(folder)
    part = part_of(folder)
    part.mkdir(parents=True, exist_ok=True)
    yield part


def _in_processes(part: Path, plan: Plan, workers: int, rank: int, world_size: int, report: Callable) -> None:
    # Spawned, as torch's threads do not survive a fork. Ctrl-C is for the process that waits for them.
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **ignore) as pool:
        ranks = [rank + world_size * worker for worker in range(workers)]
        jobs = [pool.submit(_work_for, os.getpid(), part, plan, turn, world_size * workers) for turn in ranks]
        try:
            running = set(jobs)
            while running:
                _, running = wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION)
                notes = (_note(part, int(path.stem)) for path in part.glob("[0-9]*.json"))
                report(sum(note["samples"] for note in notes if note))
                if any(job.done() and job.exception() for job in jobs):
                    break
        finally:
            if any(not job.done() for job in jobs):
                (part / FAILED).touch()  # the others stop after their shard
        try:
            for job in jobs:
                job.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"{part}: a worker died, perhaps for lack of memory; run again with fewer workers"
            ) from error


def _work_for(parent: int, part: Path, plan: Plan, rank: int, world_size: int) -> None:
    def stop_if_alone(done: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the command was killed

    _work(part, plan, rank, world_size, stop_if_alone)


def _work(part: Path, plan: Plan, rank: int, world_size: int, report: Callable[[int], None]) -> None:
    done = 0
    for number, (identity, payload) in enumerate(plan.tasks()):
        if number % world_size != rank:
            continue
        if (part / FAILED).exists():
            return
        digest = _digest(identity)
        note = _note(part, number)
        if note is None or note["task"] != digest:
            made = plan.make(part / f"{number:06d}.tar", payload)
            note = {"task": digest, "samples": made.shard.samples if made.shard else 0}
            note |= {"shard": asdict(made.shard) if made.shard else None, "skipped": list(made.skipped)}
            temporary = part / f".{number:06d}.{os.getpid()}.json"
            temporary.write_text(json.dumps(note), encoding="utf-8")
            os.replace(temporary, part / f"{number:06d}.json")
        done += note["samples"]
        report(done)


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
