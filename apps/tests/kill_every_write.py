"""Kill training runs with SIGKILL at their writes, run them again, and compare the folders with undisturbed ones.

    python apps/tests/kill_every_write.py       # at every write
    python apps/tests/kill_every_write.py 5     # at five of each verb, drawn at random

A write is a file opened to write, a rename, or a removal in the folder of runs: between two nothing changes.
Libraries are loaded once: runs are forks of this process.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_runs import VERBS, make_all, train

from ddt_apps.run.fitting import RunRecorder

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
TIMES = {"throughput.csv"}  # what depends on the clock
MORE = {"pretrain": ["retention_limit=100"]}


def prepare() -> None:
    """Make data and undisturbed runs of all verbs, in the working directory."""
    torch.set_num_threads(1)
    RunRecorder.log_every, RunRecorder.save_every_seconds = 1, 0.0
    assert in_fork(make_all) == 0
    shutil.rmtree("runs/pretrain")
    assert in_fork(lambda: carry("pretrain", "runs")) == 0
    for verb in VERBS:
        assert in_fork(lambda verb=verb: carry(verb, "whole")) == 0, verb


def carry(verb: str, runs: str) -> None:
    train(verb, verb, *MORE.get(verb, ()), runs=Path(runs))


def in_fork(work: Callable[[], object]) -> int:
    """Return the exit code of a child that does the work, or minus the signal that it died of."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(verb: str, at: int, count: Path | None = None) -> None:
    """Train in `killed/`, and die before write number `at`; say in the file `count` how many there were."""
    seen, here = 0, os.path.realpath("killed")

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in EVENTS or not isinstance(arguments[0], (str, Path)):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if os.path.realpath(arguments[0]).startswith(here):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    carry(verb, "killed")
    if count:
        count.write_text(str(seen))


def files(run: Path) -> dict[str, bytes]:
    """Return the files of a run, but for those that depend on the clock."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in TIMES}


def writes_of(verb: str) -> int:
    """Count the writes of an undisturbed run."""
    count = Path("count")
    assert in_fork(lambda: dying(verb, 0, count)) == 0
    shutil.rmtree("killed")
    return int(count.read_text())


def check(verb: str, at: int) -> None:
    """Compare a run that was killed at a write, and run again, with an undisturbed one."""
    assert in_fork(lambda: dying(verb, at)) == -signal.SIGKILL, (verb, at)
    assert in_fork(lambda: carry(verb, "killed")) == 0, (verb, at, "does not go on")
    assert os.listdir("killed") == [verb], (verb, at, "something was left beside the run")
    cut, whole = files(Path("killed", verb)), files(Path("whole", verb))
    assert cut.keys() == whole.keys(), (verb, at, cut.keys() ^ whole.keys())
    for file in whole:
        assert cut[file] == whole[file], (verb, at, file)
    shutil.rmtree("killed")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        for verb in VERBS:
            total = writes_of(verb)
            points = range(1, total + 1)
            if len(sys.argv) > 1:
                points = sorted(random.sample(points, min(total, int(sys.argv[1]))))
            for at in points:
                check(verb, at)
            print(f"{verb}: killed at {len(points)} of {total} writes, always the same folder in the end", flush=True)


if __name__ == "__main__":
    main()
