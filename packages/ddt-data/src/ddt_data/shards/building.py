"""Make a shard folder shard by shard, in any number of processes and commands, going on where killed ones stopped.

Each shard is a function of its task alone. It is written to `.<name>.part/shards` and then gets a note of the task it
came from in `.<name>.part/notes`, so that later only what is missing or was made from something else is made. The same
command started again, on this machine or on another one that sees the folder, helps: the commands share the tasks as
`jobs.py` says, each hands its own out to its processes, and one of them puts the folder in place when all is done.
"""

import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any

from ddt_data.shards.index import INDEX, write_index
from ddt_data.shards.jobs import SHARDS, Job, joined, something_else
from ddt_data.shards.manifest import MANIFEST, Manifest
from ddt_data.shards.notes import Made, Note, Tasks, digest_of, forget_others, list_notes, name_of

Progress = Callable[[int, int], None]  # (samples done, of; 0 where it is not known)
Task = tuple[int, str, Any]  # number, digest of what identifies it, what `make` needs


class NothingLeftError(ValueError):
    """All inputs were left out; `skipped` names them."""

    def __init__(self, folder: Path, skipped: tuple[dict, ...]):
        first = "".join(f"; {entry['name']}: {entry['why']}" for entry in skipped[:3])
        super().__init__(f"{folder}: no sample to write, {len(skipped)} were left out{first}")
        self.skipped = skipped


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

    tasks: Tasks  # gives, in order, (what identifies the task, what `make` needs)
    make: Callable[[Path, Any], Made]  # writes one shard
    manifest: Manifest = field(default_factory=lambda: Manifest(0, ()))  # what it says besides counts


def build(
    folder: str | Path, plan: Plan, workers: int = 1, total: int = 0, progress: Progress | None = None
) -> Manifest:
    """Make a shard folder, together with all other commands that do; return its manifest when it is complete.

    Args:
        folder: To make; appears, complete, when the last shard is done.
        workers: Processes of this command; with one, the work is done in this one.
        total: Samples expected, for `progress`.
        progress: Called with (samples done by all commands, total) when there are more.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or another command is making something else there.
        ValueError: If `make` refused something, nothing was left to write, the source changed meanwhile, or `workers`
            is below 1. Finished shards are kept for the next run.
    """
    folder = Path(folder)
    if workers < 1:
        raise ValueError(f"workers ({workers}) must be at least 1")
    report = (lambda done: progress(done, total)) if progress else (lambda done: None)
    with joined(folder, digest_of(asdict(plan.manifest))) as job:
        share = _Share(folder, plan, job, report)
        try:
            if workers == 1:
                _work(share)
            else:
                _in_processes(share, workers)
            return _publish(folder, plan, job)
        except (ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError) and (made := _placed(folder, job.part)):
                return made
            if not any((job.part / SHARDS).glob("*.tar")) and job.alone():
                shutil.rmtree(job.part, ignore_errors=True)
            raise


class _Share:
    """What one job does of a plan, and what it sees of the others' work."""

    def __init__(self, folder: Path, plan: Plan, job: Job, report: Callable[[int], None]):
        self.folder, self.plan, self.job, self.report = folder, plan, job, report
        self._mine: set[int] = set()  # tasks of this job
        self._others: dict[int, str] = {}  # digests of tasks that others are at, by number
        self._notes: dict[int, Note] = {}  # of tasks that are done
        self._next_look = 0.0

    def tasks(self) -> Iterator[Task | float]:
        """Yield what this job is to make, or for how many seconds to wait for others, until all is done.

        First it takes what nobody has taken, from a place of its own on, where it meets few others. Then it looks who
        has taken the rest, and waits for that or, if they are dead, takes it.
        """
        start, pauses = self._start(), _pauses()
        self._look()
        yield from self._take(self.job.claim_new, start)
        while self._unmade():
            if any(self.job.claim(name_of(number)) for number in self._others):
                yield from self._take(self.job.claim)
            else:
                yield next(pauses)

    def _start(self) -> int:
        if self.job.alone():
            forget_others(self.job.part, self.plan.tasks)
            return 0
        return secrets.randbelow(max(1, sum(1 for _ in self.plan.tasks())))

    def _take(self, claim: Callable[[str], bool], start: int = 0) -> Iterator[Task]:
        self._others = {}
        for number, (identity, payload) in enumerate(self.plan.tasks()):
            digest = digest_of(identity)
            if number in self._mine or self._done(number, digest):
                continue
            if number < start or not claim(name_of(number)):
                self._others[number] = digest
                continue
            if (self.folder / MANIFEST).is_file():  # all was done before this job came
                self._others = {}
                return
            self._mine.add(number)
            yield number, digest, payload

    def _unmade(self) -> bool:
        """Look again at what is not this job's, and return whether some of it is still to be made."""
        self._look()
        if (self.folder / MANIFEST).is_file():  # and with that the notes are gone
            return False
        self._tell()
        self._others = {number: digest for number, digest in self._others.items() if not self._done(number, digest)}
        return bool(self._others)

    def count(self, note: Note, seconds: float) -> None:
        """Count what this job has made, and now and then what others have made meanwhile."""
        self.job.made(note.samples, seconds)
        self._notes[note.number] = note
        if time.monotonic() > self._next_look:
            self._look()
        self._tell()

    def _tell(self) -> None:
        self.report(sum(note.samples for note in self._notes.values()))

    def _look(self) -> None:
        started = time.monotonic()
        self._notes = list_notes(self.job.part)
        self._next_look = time.monotonic() + max(1.0, 20 * (time.monotonic() - started))

    def _done(self, number: int, digest: str) -> bool:
        note = self._notes.get(number)
        if note is None or note.digest == digest:
            return note is not None
        with suppress(FileNotFoundError):  # another job has removed it
            if self.job.watch.look(note.read(self.job.part)[1]):
                raise something_else(self.folder)
        note.file(self.job.part).unlink(missing_ok=True)
        return False


def _work(share: _Share) -> None:
    for task in share.tasks():
        if isinstance(task, float):
            time.sleep(task)
        else:
            share.count(*_make(share.job.part, share.job.folder, share.plan.make, *task))


def _in_processes(share: _Share, workers: int) -> None:
    """Hand the tasks out, each to the next process that is free: none but this one reads the source."""
    running: set[Future] = set()
    with ProcessPoolExecutor(workers, _context(), _begin, (share.plan.make,)) as pool:
        try:
            for task in share.tasks():
                pause = task if isinstance(task, float) else None
                if pause is None:
                    running.add(pool.submit(_make_in_worker, share.job.part, share.job.folder, *task))
                elif not running:
                    time.sleep(pause)
                if pause or len(running) == workers:
                    ended, running = wait(running, pause, FIRST_COMPLETED)
                    for each in ended:
                        share.count(*each.result())
            for each in as_completed(running):
                share.count(*each.result())
        except BrokenProcessPool as error:
            raise ValueError(
                f"{share.job.part}: a worker died, perhaps for lack of memory; run again with fewer workers"
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


def _make_in_worker(part: Path, beside: Path, *task: Any) -> tuple[Note, float]:
    return _make(part, beside, _make_of_worker, *task)


def _make(
    part: Path, beside: Path, make: Callable[[Path, Any], Made], number: int, digest: str, payload: Any
) -> tuple[Note, float]:
    """Make a shard in the folder `beside` of this job, put it in place, then its note; return that, and the seconds."""
    started, tar = time.monotonic(), beside / f"{name_of(number)}.tar"
    made = make(tar, payload)
    note = Note.of(number, digest, made)
    if not note.file(part).exists():  # else another job was so kind, while this one was taken for dead
        if made.shard:
            os.replace(tar, part / SHARDS / tar.name)
        note.write(part, beside, made)
    return note, time.monotonic() - started


def _publish(folder: Path, plan: Plan, job: Job) -> Manifest:
    """Put the folder in place, or wait until another job has."""
    part, pauses = job.part, _pauses()
    while not (placed := (folder / MANIFEST).is_file()) and not job.claim("folder"):
        time.sleep(next(pauses))
    if placed:
        return Manifest.read(folder)
    digests, notes = [digest_of(identity) for identity, _ in plan.tasks()], list_notes(part)
    if any(number not in notes or notes[number].digest != digest for number, digest in enumerate(digests)):
        if made := _placed(folder, part):
            return made
        raise ValueError(f"{folder}: its source changed while it was made; run again, which makes what is new")
    found = [notes[number].read(part)[0] for number in range(len(digests))]
    skipped = tuple(entry for made in found for entry in made.skipped)
    shards = tuple(made.shard for made in found if made.shard)
    if not shards:
        raise NothingLeftError(folder, skipped)
    samples = sum(shard.samples for shard in shards)
    manifest = replace(plan.manifest, samples=samples, shards=shards, skipped=skipped)
    whole = part / SHARDS
    write_index(whole, manifest)
    manifest.write(whole)
    keep = {MANIFEST, INDEX, *(shard.name for shard in shards)}
    for path in whole.iterdir():
        if path.name not in keep:
            path.unlink()
    os.replace(whole, os.path.realpath(folder))
    shutil.rmtree(part, ignore_errors=True)
    return manifest


def _placed(folder: Path, part: Path) -> Manifest | None:
    """Return the manifest of a folder if another job has put it in place."""
    if (part / SHARDS).is_dir():
        return None
    for _ in range(600):  # a minute, after which other machines see it as well
        if (folder / MANIFEST).is_file():
            return Manifest.read(folder)
        time.sleep(0.1)
    return None


def _pauses() -> Iterator[float]:
    """Yield how long to wait before each look at what others do, ever longer: they may be hundreds on one disk."""
    pause = 0.1
    while True:
        yield pause
        pause = min(2 * pause, 5.0)
