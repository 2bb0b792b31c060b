"""Memory while a shared model (FSDP2) is saved and exported, above what training holds anyway.

python benchmarks/checkpoint_memory.py [width=1024] [depth=16] [rows=32768]

A LLaMA of 0.24 billion weights, 0.94 GB in float32, is trained by two processes with gloo (Linux; up to 6 GB together).
It is stopped in its first step, exported by `ddt export run`, and goes on to the end, where both export it. Counted is
the resident memory of a process, pages of libraries included: VmRSS, and as its peak VmHWM, reset before. Files of
weights are read and written, not mapped. Printed are MB before, and at the most meanwhile; a few minutes.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loss_memory import kilobytes
from pairs import settings

TOKENS = 16  # ids of an image
FOUND = Path("found.txt")


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Write down resident memory before the block, and its peak within."""
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    yield
    with FOUND.open("a") as file:
        file.write(f"{what}: {before / 1024:,.0f} MB before, {kilobytes('VmHWM') / 1024:,.0f} at the most\n")


def wrapped(owner: Any, name: str, what: str) -> None:
    """Measure a function whenever it is called."""
    function = getattr(owner, name)

    def measuring(*arguments: Any) -> None:
        with measured(f"process {os.environ.get('RANK', 0)}, {what}"):
            function(*arguments)

    setattr(owner, name, measuring)


def work(stops: bool, *arguments: str) -> None:
    """Be one of the processes of `ddt`; one that stops gets SIGTERM in its first step."""
    from ddt_apps.__main__ import main
    from ddt_apps.run import folder
    from ddt_apps.train import export  # noqa: F401
    from ddt_llm import MultimodalLM
    from ddt_llm.training import LanguageModelTraining

    wrapped(folder, "save_sharded", "saving")
    wrapped(MultimodalLM, "save_pretrained", "exporting")
    begin = LanguageModelTraining.on_train_batch_start

    def beginning(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        begin(*given)

    if stops:
        LanguageModelTraining.on_train_batch_start = beginning
    sys.argv = ["ddt", *arguments]
    main()


def start(*arguments: str, ranks: int = 2, stops: bool = False) -> None:
    """Run `ddt` in processes that meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "work", str(int(stops)), *arguments]
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    running = []
    for rank in range(ranks):
        own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        running.append(subprocess.Popen(command, env={**os.environ, **where, **own}))
    codes = [process.wait() for process in running]
    if codes != [143 if stops else 0] * ranks:
        raise SystemExit(f"{arguments[0]} ended with {codes}")


def make_ids(rows: int) -> None:
    """Write id shards of `rows` codes."""
    import numpy as np

    from ddt_data import ShardWriter

    generator = np.random.default_rng(0)
    identity = {"fingerprint": "0" * 16, "codebook_size": rows, "num_tokens": TOKENS}
    with ShardWriter("ids", source="random", tokenizer=identity) as writer:
        for i in range(8):
            writer.write({"key": f"{i}", "text": "a red fox", "ids": generator.integers(rows, size=TOKENS)})


def main() -> None:
    """Train, stop, export, go on, and print what was measured."""
    options, _ = settings(width=1024, depth=16, rows=32768)
    sizes = [f"llama.width={options['width']}", f"llama.depth={options['depth']}", "llama.num_heads=16"]
    command = ["pretrain", "tiny/pretrain", "data=ids", "name=large", *sizes, "strategy=fsdp2", "batch_size=4"]
    command += ["optimizer.steps=2", "optimizer.warmup_steps=0", "optimizer.optimizer=adamw", "compile=off"]
    command += ["device=cpu", "precision=32-true", "loggers=[]"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_ids(options["rows"])
        start(*command, stops=True)
        start("export", "run", "runs/large", ranks=1)
        start(*command)
        print(FOUND.read_text(), end="")


if __name__ == "__main__":
    work(sys.argv[2] == "1", *sys.argv[3:]) if sys.argv[1:2] == ["work"] else main()
