"""The commands that make one folder together, on one machine or on several with a shared disk.

Each is a job: a folder in `.<name>.part/jobs`, in which it locks a file `alive` and touches it every few seconds. A job
is dead if that lock is free, which shows on its own machine, or if the file stood still for `PATIENCE` seconds of
whoever watches it; clocks of two machines are never compared.

Work is claimed by a link named after it, which a shared disk makes for one job alone. No claim is taken away: behind
that of a dead job comes another one, `<work>.<dead job>`, which again one job alone can make. A job that comes back
after it was taken for dead makes what another one makes as well, to the same bytes.
"""

import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self

from ddt_data.shards.claim import held, part_of, refuse_if_taken, try_place
from ddt_data.shards.manifest import MANIFEST

BEAT, PATIENCE = 10.0, 120.0  # seconds between two touches, and without one until a job is taken for dead
SHARDS, NOTES, JOBS, CLAIMS = "shards", "notes", "jobs", "claims"  # folders of `.<name>.part`
# What disks say that know no links, such as exFAT. On them all jobs do all the work.
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
ALIVE, MADE = "alive", "made"  # files of a job: that it lives; samples it has made, and in how many seconds


class Watch:
    """What others see of the jobs of a folder.

    Args:
        part: The folder that stands in until it is complete.
    """

    def __init__(self, part: Path):
        self.part = part
        self._seen: dict[str, tuple[int, float]] = {}  # when its file was touched by its clock, and seen so by ours

    def look(self, job: str) -> dict | None:
        """Return what a job says of itself if it is alive, as far as can be seen: `machine`, `plan` and `touched`."""
        try:
            with open(self.part / JOBS / job / ALIVE, encoding="utf-8") as file:
                touched, about = os.fstat(file.fileno()).st_mtime_ns, json.load(file)
                if about["machine"] == _machine() and _is_free(file.fileno()):
                    return None
        except FileNotFoundError:
            return None
        now = time.monotonic()
        if self._seen.get(job, (None, now))[0] != touched:
            self._seen[job] = touched, now
        return about | {"touched": touched / 1e9} if now - self._seen[job][1] < PATIENCE else None

    def jobs(self) -> dict[str, dict]:
        """Return the jobs that are alive, and what they say of themselves."""
        names = os.listdir(self.part / JOBS) if (self.part / JOBS).is_dir() else []
        return {name: about for name in names if (about := self.look(name))}

    def made(self, job: str) -> tuple[int, float]:
        """Return how many samples a job has made, and in how many seconds, one shard after another."""
        try:
            return tuple(json.loads((self.part / JOBS / job / MADE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return 0, 0.0

    def holder(self, work: str) -> tuple[str | None, str]:
        """Return the living job that has claimed some work, if one has, and the name of its claim or of the next."""
        claim = work
        while True:
            try:
                job = os.readlink(self.part / CLAIMS / claim)
            except FileNotFoundError:
                return None, claim
            if self.look(job):
                return job, claim
            claim = f"{work}.{job}"


class Job:
    """One of the commands that make a folder, within a block.

    Args:
        part: See `Watch`.
        plan: What is made.

    Example:
        >>> import tempfile
        >>> part = Path(tempfile.mkdtemp())
        >>> with Job(part, "foxes") as one, Job(part, "foxes") as other:
        ...     one.claim("000000"), other.claim("000000"), other.claim("000001"), one.claim("000000")
        (True, False, True, True)
        >>> with Job(part, "foxes") as later:
        ...     later.claim("000000")
        True
    """

    def __init__(self, part: Path, plan: str):
        self.name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.part, self.plan = part, plan
        self.folder = part / JOBS / self.name  # for what it has begun
        self.watch, self._ended = Watch(part), Event()
        self._samples, self._seconds = 0, 0.0

    def __enter__(self) -> Self:
        for needed in (self.folder, *(self.part / name for name in (SHARDS, NOTES, CLAIMS))):
            needed.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f".{ALIVE}", "w", encoding="utf-8")
        os.register_at_fork(after_in_child=self._file.close)  # which would keep the lock
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump({"machine": _machine(), "plan": self.plan}, self._file)
        self._file.flush()
        os.replace(self.folder / f".{ALIVE}", self.folder / ALIVE)
        Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()

    def claim_new(self, work: str) -> bool:
        """Return whether some work is this job's to do, because nobody has claimed it before, dead or alive."""
        try:
            os.symlink(self.name, self.part / CLAIMS / work)
        except FileExistsError:  # or it was this job, and the disk's answer got lost: `claim` will find out
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        return True

    def claim(self, work: str) -> bool:
        """Return whether some work is this job's to do, because nobody or a dead job has claimed it, or this one."""
        while True:
            job, claim = self.watch.holder(work)
            if job is not None:
                return job == self.name
            if self.claim_new(claim):
                return True
            time.sleep(0.01)

    def made(self, samples: int, seconds: float) -> None:
        """Note how quick this job is."""
        self._samples, self._seconds = self._samples + samples, self._seconds + seconds
        (self.folder / f".{MADE}").write_text(json.dumps([self._samples, self._seconds]), encoding="utf-8")
        os.replace(self.folder / f".{MADE}", self.folder / MADE)

    def agrees(self) -> bool:
        """Return whether all other jobs make the same."""
        return all(about["plan"] == self.plan for about in self.watch.jobs().values())

    def alone(self) -> bool:
        """Return whether no other job is alive."""
        return set(self.watch.jobs()) == {self.name}

    def _beat(self) -> None:
        with suppress(FileNotFoundError):  # all is done, and another job has put the folder in place
            while not self._ended.wait(BEAT):
                os.utime(self.folder / ALIVE)


@contextmanager
def joined(folder: Path, plan: str) -> Iterator[Job]:
    """Be one of the jobs that make a folder, after a try of whether it can be made there.

    Raises:
        FileExistsError: If the folder holds something.
        OSError: If it cannot be made there, or another command is making something else.
    """
    part, job = part_of(folder), None
    with held(folder, shared=True) as lock, ExitStack() as stack:
        try:
            while job is None:
                if (folder / MANIFEST).is_file() and not (part / SHARDS).is_dir():
                    shutil.rmtree(part, ignore_errors=True)  # what a kill left after the folder was put in place
                if part.is_dir():
                    refuse_if_taken(folder)
                else:
                    try_place(folder)
                with suppress(FileNotFoundError):  # another job has put all away in this very moment
                    job = stack.enter_context(Job(part, plan))
            if not job.agrees():
                raise something_else(folder)
            yield job
        finally:
            stack.close()
            if not part.is_dir():
                lock.unlink(missing_ok=True)


def something_else(folder: Path) -> BlockingIOError:
    """Return the error that stops a command which would mix two things in a folder."""
    return BlockingIOError(f"{folder} is being made of something else; wait for its end, or choose another folder")


def _machine() -> str:
    """Name the running kernel, of whose processes the locks can be seen."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else platform.node()


def _is_free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
