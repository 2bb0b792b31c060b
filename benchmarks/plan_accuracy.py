"""What `ddt plan` says of a run beside what the run takes: memory at the most, and the time of a step.

python benchmarks/plan_accuracy.py [CONFIG ...] [steps=16] [precision=auto] [compile=off]

Makes scenes, an untrained autoencoder, ids of an untrained tokenizer, and so on, by the commands of `ddt`, in a
temporary folder; then runs the training of each CONFIG and `ddt plan` of the same words, each in a process of its own
with one thread. Time is CPU time of a process, since a shared machine's wall time says little: of a run the median of
the steps after the first four. Memory is that of the whole process (VmHWM of /proc, Linux); "counted" is what the plan
knows without trying. Ten minutes for all on an idle machine.
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
    "small/pretrain": ("data=small-ids", "runs"),  # which the next one tunes
    "small/sft": ("data=small-ids model=runs/small-pretrain", ""),
    "small/vae": ("data=small", ""),
}


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
    """Return verb, configuration and settings of a short run, which is in its last phase from the first step on."""
    size, kind = config.split("/")
    language = kind in ("pretrain", "sft")
    optimizer = {"renderer": "training."}.get(kind, "optimizer." if language else "training.optimizer.")
    words = [kind if language else f"train-{kind}", config, RUNS[config][0], f"name={size}-{kind}", f"steps={steps}"]
    words += [f"{optimizer}warmup_steps=1", "watch_every=1000", "loggers=[]", "device=cpu"]
    words += ["training.continuous_steps=0"] * (kind == "tokenizer") + ["held_out=0"] * (not language)
    return " ".join([*words, f"precision={precision}", f"compile={compile}"])


def main() -> None:
    """Print a row for each configuration."""
    options, configs = settings(steps=16, precision="auto", compile="off")
    ways = ("counted", "planned", "measured", "ratio")
    print(f"{'':16}{'memory'}" + "".join(f"{way:>11}" for way in (*ways, "step, planned", *ways[2:])))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for words in DATA:
            ddt(words)
        for config, (_, after) in RUNS.items():
            wanted = not configs or config in configs
            if not wanted and not after:
                continue
            words = words_of(config, **options)
            ddt(f"{words} callbacks=[plan_accuracy.Clock]")
            if wanted:
                took, size, counted = found(ddt(f"plan {words}"))
                memory, seconds = map(float, Path("measured").read_text().split())
                row = [f"{counted:.2f}", f"{size:.2f}", f"{memory / 1e9:.2f} GB", f"{size / memory * 1e9:.2f}"]
                row += [f"{took:.3g}", f"{seconds:.3g} s", f"{took / seconds:.2f}"]
                print(f"{config:16}{'':6}" + "".join(f"{value:>11}" for value in row), flush=True)
            if after not in ("", "runs"):
                ddt(after)


def found(said: str) -> tuple[float, float, float]:
    """Return what a plan says: seconds of a step, GB, and GB without those of the process."""
    seconds = float(re.search(r"together, ([\d.e+-]+) s:", said)[1])
    total = float(re.search(r"memory +([\d.]+) of", said)[1])
    return seconds, total, total - float(re.search(r"process ([\d.]+)", said)[1])


if __name__ == "__main__":
    main()
