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

from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import pretrain, renderer, sft, tokenizer
from ddt_apps.train.settings import Pretrain, TrainRenderer, TrainTokenizer, Tune

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
TIMES = {"throughput.csv"}  # what depends on the clock
ALL = ["batch_size=4", "watch_every=2", "tensorboard=false", "precision=32-true", "device=cpu"]
CODEC = [f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")]
CODEC += ["codec.quantizer.codebook_size=16", "codec.schedule=[4]", "held_out=2", "training.continuous_steps=1"]
SCHEDULE = ["optimizer.steps=4", "optimizer.warmup_steps=1"]
LLAMA = ["llama.width=16", "llama.depth=1", "llama.num_heads=2", "text_vocabulary=300", "retention_limit=100"]
RENDERER = [f"training.{each}" for each in ("second_phase_step=2", "warmup_steps=1")]
RENDERER += [f"training.discriminator_{each}" for each in ("width=8", "depth=2")]
VERBS = {
    "tokenizer": (tokenizer.train, TrainTokenizer, ["data=sc", *CODEC, *(f"training.{each}" for each in SCHEDULE)]),
    "renderer": (
        renderer.train,
        TrainRenderer,
        ["data=sc", "tokenizer=runs/tokenizer", "steps=4", "held_out=2", *RENDERER],
    ),
    "pretrain": (pretrain.train, Pretrain, ["data=ids", *SCHEDULE, *LLAMA]),
    "sft": (sft.train, Tune, ["data=ids", "model=runs/pretrain", *SCHEDULE]),
}


def prepare() -> None:
    """Make data and, in `runs/`, undisturbed runs of all verbs, in the working directory."""
    torch.set_num_threads(1)
    RunRecorder.log_every, RunRecorder.save_every_seconds = 1, 0.0
    assert in_fork(lambda: make_scenes(Path("sc"), 12, level="tiny")) == 0
    for verb in VERBS:
        assert in_fork(lambda verb=verb: train(verb)) == 0, verb
        if verb == "tokenizer":
            assert in_fork(lambda: tokenize_shards(Path("sc"), Path("runs/tokenizer"), Path("ids"))) == 0


def train(verb: str, runs: str = "runs") -> None:
    work, settings, overrides = VERBS[verb]
    work(load_config(settings, f"tiny/{verb}", [*ALL, *overrides, f"name={verb}"]), Path(runs))


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
    train(verb, "killed")
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
    assert in_fork(lambda: train(verb, "killed")) == 0, (verb, at, "does not go on")
    assert os.listdir("killed") == [verb], (verb, at, "something was left beside the run")
    cut, whole = files(Path("killed", verb)), files(Path("runs", verb))
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
