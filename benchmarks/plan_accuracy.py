"""What `ddt plan` says of a run beside what the run takes: memory at the most, and the time of a step.

python benchmarks/plan_accuracy.py [CONFIG ...] [steps=12] [precision=auto] [compile=off]

Makes scenes, an untrained autoencoder, ids of an untrained tokenizer, and so on, by the commands of `ddt`, in a
temporary folder; then runs `ddt plan` and the training itself of each CONFIG, both in processes of their own with one
thread. Time is CPU time of a process, since a shared machine's wall time says little: the median of the steps after
the first four. Memory is VmHWM of /proc (Linux), that of the whole process. A quarter of an hour for all.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning
from loss_memory import kilobytes
from pairs import settings

WARM = 4  # first steps, that do not count
DATA = [  # what the configurations train on
    "data scenes --level tiny --count 2000 --out tiny",
    "data scenes --count 2000 --out small",
    "train-vae small/vae data=small name=vae training.optimizer.steps=2 training.optimizer.warmup_steps=1 compile=off",
    "data latents small --vae runs/vae/vae --out latents",
]
RUNS = {  # a configuration, and what is made of its run
    "tiny/tokenizer": ("data=tiny", "tokenize tiny --tokenizer runs/tiny-tokenizer --out tiny-ids"),
    "small/tokenizer": (
        "data=latents vae=runs/vae/vae",
        "tokenize latents --tokenizer runs/small-tokenizer --out small-ids",
    ),
    "tiny/renderer": ("data=tiny tokenizer=runs/tiny-tokenizer training.second_phase_step=0", ""),
    "tiny/pretrain": ("data=tiny-ids", ""),
    "small/pretrain": ("data=small-ids", ""),
    "small/sft": ("data=small-ids model=runs/small-pretrain", ""),
    "small/vae": ("data=small", ""),
}
FREE = "held_out=0 "  # of what draws samples: that is not the step


class Clock(lightning.Callback):
    """Writes down the CPU seconds from the end of a step to that of the next, and the memory at the most."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        took = [end - begin for begin, end in zip(self.ends, self.ends[1:], strict=False)][WARM - 1 :]
        Path("measured").write_text(f"{kilobytes('VmHWM') * 1024} {statistics.median(took)}")


def ddt(words: str) -> str:
    """Run a command; return what it prints."""
    command = [sys.executable, "-m", "ddt_apps", *words.split()]
    path = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ddt {words}: {done.stderr or done.stdout}")
    return done.stdout


def words_of(config: str, steps: int, precision: str, compile: str) -> str:
    """Return verb, configuration and settings."""
    size, verb = config.split("/")
    verb = verb if verb in ("pretrain", "sft") else f"train-{verb}"
    group = {"pretrain": "optimizer.", "sft": "optimizer.", "renderer": ""}.get(size and config.split("/")[1])
    group = "training.optimizer." if group is None else group
    short = f" {group}steps={steps} " + (f"{group}warmup_steps=1" if group else "training.warmup_steps=1")
    short += " training.continuous_steps=0" if verb == "train-tokenizer" else ""
    short += "" if verb in ("pretrain", "sft") else " held_out=0"
    where = f" device=cpu precision={precision} compile={compile} watch_every=1000 loggers=[]"
    return f"{verb} {config} {RUNS[config][0]} name={size}-{config.split('/')[1]}{short}{where}"


def main() -> None:
    options, configs = settings(steps=12, precision="auto", compile="off")
    configs = configs or list(RUNS)
    callback = " callbacks=[plan_accuracy.Clock]"
    print(
        f"{'':16}{'memory, planned':>18}{'measured':>10}{'ratio':>7}{'step, planned':>16}{'measured':>10}{'ratio':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = os.environ.get("KEEP", folder)
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        for words in DATA:
            ddt(words) if not Path("latents").exists() else None
        for config, (_, after) in RUNS.items():
            words = words_of(config, **options)
            needed = config in configs
            if not needed and not any(config.split("/")[0] == other.split("/")[0] for other in configs):
                continue
            ddt(words + callback)
            if needed:
                took, size, counted = found(ddt(f"plan {words}"))
                memory, seconds = map(float, Path("measured").read_text().split())
                row = [f"{counted:.2f}", f"{size:.2f}", f"{memory / 1e9:.2f} GB", f"{size / memory * 1e9:.2f}"]
                row += [f"{took:.3g}", f"{seconds:.3g} s", f"{took / seconds:.2f}"]
                print(f"{config:16}" + "".join(f"{value:>11}" for value in row), flush=True)
            if after:
                ddt(after)


def found(said: str) -> tuple[float, float, float]:
    """Return what a plan says: seconds of a step, GB, and GB without those of the process."""
    seconds = float(re.search(r"together, ([\d.e+-]+) s:", said)[1])
    total = float(re.search(r"memory +([\d.]+) of", said)[1])
    return seconds, total, total - float(re.search(r"process ([\d.]+)", said)[1])


if __name__ == "__main__":
    main()
