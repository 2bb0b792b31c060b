"""Several processes train as one does, however they are started, stopped and killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from tiny_runs import ALL, VERBS, make_all, same, train, weights

from ddt_apps.run import starting
from ddt_apps.run.carrying_out import carry_out
from ddt_apps.run.config import load_config
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.signals import Terminated
from ddt_apps.train.export import export_run

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster"
LONGER = {
    # More codes than a batch has ids, so that some die; rows that are drawn from prefixes; a rate at which roundings
    # stay small.
    "tokenizer": [
        *(f"training.optimizer.{each}" for each in ("steps=20", "lr=1e-3")),
        *("codec.quantizer.codebook_size=64", "codec.quantizer.dead_share=0.9", "codec.flow.prefix_share=0.4"),
    ],
    "renderer": ["steps=20", "training.second_phase_step=10", "training.prefix_share=0.3"],
    "pretrain": ["optimizer.steps=20", "optimizer.new_rows_steps=5", "activation_checkpointing=true"],
}
# Two tasks of Slurm's srun, on this machine alone.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_JOB_ID=31 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_NODELIST=localhost \\
        SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit ${code:-0}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, and a finished run of each verb."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(verb, name, *more):
    name_of_verb = verb if verb == "pretrain" else f"train-{verb}"
    settings = [*ALL, *VERBS[verb][2], *LONGER[verb], f"name={name}", "device=cpu", "compile=off", *more]
    return [name_of_verb, f"tiny/{verb}", *settings]


def ddt(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ddt_apps", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start(way, arguments, folder):
    """Start two processes by `devices=2`, or by a script of docs/cluster."""
    if way == "devices":
        return ddt(*arguments, "devices=2")
    folder.mkdir()
    for name, text in (("srun", SRUN), ("ddt", f'#!/bin/bash\nexec {sys.executable} -m ddt_apps "$@"\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", CLUSTER / f"{way}.sh", *arguments],
        env={**os.environ, "PATH": path, "DEVICES": "2", "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def alone(made):
    """The same runs by one process, in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for verb, longer in LONGER.items():
            train(verb, f"one-{verb}", *longer, "compile=off")
    return made / "runs"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("verb", "way"), [("tokenizer", "devices"), ("renderer", "torchrun"), ("pretrain", "slurm")])
def test_two_processes_have_the_loss_of_one_on_the_whole_batch(here, alone, tmp_path, verb, way, strategy):
    process = start(way, command(verb, "two", f"strategy={strategy}"), tmp_path / "bin")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("training ") == 1 and "2 x cpu in 32-true" in said  # one of them speaks
    one, two = (read_metrics(run / "metrics.csv") for run in (alone / f"one-{verb}", Path("runs/two")))
    assert one.keys() == two.keys()
    for name, (steps, values) in one.items():
        near = 0.1 if name.startswith("codes/") else 2e-5  # of two codes that are as near a rounding chooses one
        assert two[name][0] == steps and two[name][1] == pytest.approx(values, rel=near, abs=2e-5), name
    if verb == "tokenizer":
        assert one["codes/revived"][1][-1] > 0
    ours, theirs = weights(alone / f"one-{verb}", verb), weights("runs/two", verb)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"codebook"}:  # in which a rounding may choose another vector in the place of a dead one
        assert theirs[name].sub(ours[name]).abs().max() < 1e-3, name
    assert not list(Path("runs/two").glob(".*")) and not list(Path("runs/two").glob("*.ckpt"))


def until(ready, process):
    for _ in range(600):
        if ready() or process.poll() is not None:
            return
        time.sleep(0.1)


def test_stops_and_kills_of_one_of_several_lose_nothing(here, monkeypatch):
    steps = ["training.optimizer.steps=80"]
    whole = ddt(*command("tokenizer", "whole", *steps, "devices=2"))
    whole.communicate()
    metrics = Path("runs/cut/metrics.csv")
    running = ddt(*command("tokenizer", "cut", *steps, "devices=2"))
    until(metrics.exists, running)
    running.terminate()
    assert "stopped; run the same command again" in running.communicate()[0] and running.returncode == 143
    reached = Path("runs/cut/last.ckpt").stat().st_mtime_ns

    before = metrics.stat().st_mtime_ns
    running = ddt(*command("tokenizer", "cut", *steps, "devices=2"))
    until(lambda: metrics.stat().st_mtime_ns > before and "\n" in metrics.read_text()[-5:], running)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.split()
    began = time.monotonic()
    os.kill(int(children[-1]), signal.SIGKILL)
    said = running.communicate()[0]
    assert running.returncode == 2 and "was ended by SIGKILL" in said and "Traceback" not in said, said
    assert time.monotonic() - began < 60
    assert Path("runs/cut/last.ckpt").stat().st_mtime_ns >= reached

    ended = ddt(*command("tokenizer", "cut", *steps, "devices=2"))
    assert "going on at step" in ended.communicate()[0] and ended.returncode == 0
    assert metrics.read_text() == Path("runs/whole/metrics.csv").read_text()
    assert same(weights("runs/cut", "tokenizer"), weights("runs/whole", "tokenizer"))


def test_a_run_of_two_goes_on_with_one_and_with_three(here):
    # At this rate nothing is learned, so that the loss of a step says which samples it was made of.
    own = ["training.optimizer.lr=1e-7", "training.optimizer.steps=40", "batch_size=12", "strategy=fsdp2"]
    running = ddt(*command("tokenizer", "three", *own, "devices=2"))
    until(Path("runs/three/metrics.csv").exists, running)
    running.send_signal(signal.SIGINT)
    assert running.wait() == 130 and Path("runs/three/last.ckpt").is_dir()
    shutil.copytree("runs/three", "runs/one", symlinks=True)
    for name, devices in (("three", 3), ("one", 1)):
        said = ddt(*command("tokenizer", name, *own, f"devices={devices}")).communicate()[0]
        assert "going on at step" in said and f"runs/{name} is finished" in said, said
    train("tokenizer", "whole", *LONGER["tokenizer"], *own, "strategy=ddp", "compile=off", "device=cpu")
    one, three, whole = (read_metrics(Path(f"runs/{name}/metrics.csv"))["loss"] for name in ("one", "three", "whole"))
    assert one[0] == three[0] == whole[0] == list(range(10, 41, 10))
    assert one[1] == pytest.approx(whole[1], rel=1e-3) and three[1] == pytest.approx(whole[1], rel=1e-3)


def test_a_sharded_language_model_is_exported_and_goes_on_where_some_weights_have_not_learned_yet(here):
    """Until `new_rows_steps` the optimizer knows of the rows of tokens alone."""
    own = ["strategy=fsdp2", "optimizer.steps=160", "optimizer.new_rows_steps=140", "devices=2"]
    running = ddt(*command("pretrain", "cut", *own))
    until(Path("runs/cut/metrics.csv").exists, running)
    running.terminate()
    assert running.wait() == 143

    export_run(Path("runs/cut"))
    known = torch.distributed.checkpoint.FileSystemReader("runs/cut/last.ckpt").read_metadata().state_dict_metadata
    start = "state_dict.model."
    saved = {name: torch.empty(tuple(each.size)) for name, each in known.items() if name.startswith(start)}
    torch.distributed.checkpoint.load(saved, checkpoint_id="runs/cut/last.ckpt", no_dist=True)
    exported = weights("runs/cut", "pretrain")
    assert exported and all(torch.equal(tensor, saved[start + name]) for name, tensor in exported.items())

    said = ddt(*command("pretrain", "cut", *own)).communicate()[0]
    assert "going on at step" in said and "runs/cut is finished" in said, said
    train("pretrain", "whole", *LONGER["pretrain"], *own[1:3], "compile=off", "device=cpu")
    cut, whole = (read_metrics(Path(f"runs/{name}/metrics.csv"))["loss"] for name in ("cut", "whole"))
    assert cut[0] == whole[0] and cut[1] == pytest.approx(whole[1], rel=1e-4)


def test_what_does_not_fit_is_told_in_a_line(here, monkeypatch):
    settings = load_config(VERBS["tokenizer"][1], "tiny/tokenizer", ["data=sc", "devices=2", "batch_size=4", "name=x"])
    with pytest.raises(ValueError, match=r"devices \(2\) must be as many as processes on this machine: 1"):
        carry_out(settings, lambda run: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = load_config(VERBS["tokenizer"][1], "tiny/tokenizer", ["data=sc", "batch_size=4", "name=x"])
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be divisible by the 3 that share it"):
        carry_out(settings, lambda run: None)
    assert not Path("runs/x").exists()


class Failure:
    def __init__(self, exitcode, timestamp=0, message="no word"):
        self.exitcode, self.timestamp, self.message = exitcode, timestamp, message


@pytest.mark.parametrize(
    ("failures", "kind", "said"),
    [
        ({0: Failure(1, 5, "peer gone"), 3: Failure(-9, 6)}, ValueError, "process 3 was ended by SIGKILL"),
        ({0: Failure(2, 5, "the cause"), 1: Failure(-9, 4), 2: Failure(1, 3)}, ValueError, "^the cause$"),
        ({0: Failure(2, 7, "later"), 1: Failure(2, 6, "first")}, ValueError, "process 1: first"),
        ({0: Failure(2, 5, "a word")}, ValueError, "^a word$"),
        ({0: Failure(130), 1: Failure(130)}, KeyboardInterrupt, "^$"),
        ({0: Failure(143), 1: Failure(143)}, Terminated, "^143$"),
    ],
)
def test_what_ended_a_group_is_told_by_its_cause(failures, kind, said):
    with pytest.raises(kind, match=said):
        raise starting._what_happened(failures)
