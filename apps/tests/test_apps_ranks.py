"""Several processes train as one does, however they are started, stopped and killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint
from tiny_ranks import Group, compiled, ddt, of_srun, of_torchrun, parent, ran, stopped, until
from tiny_runs import ALL, VERBS, make_all, same, train, weights

from ddt_apps.run import starting
from ddt_apps.run.carrying_out import carry_out
from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.signals import Noted, Terminated
from ddt_apps.run.stored import Stored
from ddt_apps.train.export import export_run
from ddt_data.shards.lock import locked
from ddt_tokenizer.codec import Codec

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
ADAPTED = ["lora.rank=2", "optimizer.optimizer=adamw"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, and a run of each verb by one process."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all("tokenizer")
        for verb, longer in LONGER.items():
            train(verb, f"one-{verb}", *longer, "compile=off")
        train("pretrain", "one-adapted", *LONGER["pretrain"], *ADAPTED, "compile=off")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def command(verb, name, *more):
    name_of_verb = verb if verb == "pretrain" else f"train-{verb}"
    settings = [*ALL, *VERBS[verb][2], *LONGER[verb], f"name={name}", "device=cpu", "compile=off", *more]
    return [name_of_verb, f"tiny/{verb}", *settings]


def compare(verb, with_one=""):
    """Compare what run `two` measured, its weights and what else it left with those of a run of one process."""
    with_one = f"one-{with_one or verb}"
    one, two = (read_metrics(Path(f"runs/{each}/metrics.csv")) for each in (with_one, "two"))
    assert one.keys() == two.keys()
    for value, (steps, values) in one.items():
        near = 0.1 if value.startswith("codes/") else 1e-4  # of two codes that are as near a rounding chooses one
        assert two[value][0] == steps and two[value][1] == pytest.approx(values, rel=near, abs=2e-5), value
    ours, theirs = weights(f"runs/{with_one}", verb), weights("runs/two", verb)
    assert ours.keys() == theirs.keys()
    for each in ours.keys() - {"codebook"}:  # in which a rounding may choose another vector in the place of a dead one
        assert theirs[each].sub(ours[each]).abs().max() < 1e-3, each
    assert not list(Path("runs/two").glob(".*")) and not list(Path("runs/two").glob("*.ckpt"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("verb", LONGER)
def test_two_processes_have_the_loss_of_one_on_the_whole_batch(here, verb, strategy):
    work = compiled if (verb, strategy) == ("pretrain", "fsdp2") else ddt  # a test below has it as it is written
    codes, said = ran(of_torchrun(2), work, *command(verb, "two", f"strategy={strategy}"))
    assert codes == [0, 0], said
    assert said.count("training ") == 1 and "2 x cpu in 32-true" in said  # one of them speaks
    assert ("2 x cpu in 32-true, compiled," in said) == (work is compiled) and "not everything" not in said
    compare(verb)
    if verb == "tokenizer":
        assert read_metrics(Path("runs/two/metrics.csv"))["codes/revived"][1][-1] > 0


def script(name, *arguments, **programs):
    """Run a script of docs/cluster, in whose way stand programs: a text of bash for each."""
    folder = Path("bin").absolute()
    folder.mkdir()
    for program, text in programs.items():
        (folder / program).write_text(f"#!/bin/bash\n{text}\n")
        (folder / program).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DEVICES": "2", "PORT": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", CLUSTER / f"{name}.sh", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tasks_of_slurm_are_one_run_that_shares_adapters_out(here):
    asked = command("pretrain", "two", *ADAPTED, "strategy=fsdp2")
    started = script("slurm", *asked, srun='while [[ $1 == --* ]]; do shift; done; printf "%s\n" "$@"')
    assert started.splitlines() == ["ddt", *asked]
    codes, said = ran(of_srun(2), stopped, 1, 6, signal.SIGTERM, *asked)
    assert codes == [143, 143] and said.count("training ") == 1, said
    export_run(Path("runs/two"))
    saved, exported = saved_in("runs/two"), weights("runs/two", "pretrain")
    assert exported.keys() == weights("runs/one-adapted", "pretrain").keys()
    adapted = 0
    for name, tensor in exported.items():
        layer, _, kind = f"model.{name}".rpartition(".")
        if low := [saved[key] for part in "BA" if (key := f"{layer}.lora_{part}.default.{kind}") in saved]:
            torch.testing.assert_close(tensor, saved[f"{layer}.base_layer.{kind}"] + 16 * low[0] @ low[1])
            adapted += bool(low[0].any())
        else:
            assert torch.equal(tensor, saved[f"{layer}.{kind}"])
    assert adapted
    codes, said = ran(of_srun(2), ddt, *asked)
    assert codes == [0, 0] and "going on at step 7" in said, said
    compare("pretrain", "adapted")


def saved_in(run):
    """Read all weights of a sharded checkpoint."""
    known = torch.distributed.checkpoint.FileSystemReader(f"{run}/last.ckpt").read_metadata().state_dict_metadata
    start = "state_dict."
    saved = {name: torch.empty(tuple(each.size)) for name, each in known.items() if name.startswith(start)}
    torch.distributed.checkpoint.load(saved, checkpoint_id=f"{run}/last.ckpt", no_dist=True)
    return {name.removeprefix(start): tensor for name, tensor in saved.items()}


def test_processes_of_torchrun_are_one_run(here):
    said = script("torchrun", *command("pretrain", "two"))
    assert said.count("training ") <= 1 and said.count("next: ddt ") == 1, said
    compare("pretrain")


def drawing():
    """Return what says whether a picture of a run is new: one comes with every second step."""
    before = set(Path("runs/cut").glob("samples/*.png"))
    return lambda: set(Path("runs/cut").glob("samples/*.png")) > before


def is_free():
    """Return whether nobody is at a run."""
    try:
        with locked(Path("runs/cut"), "is in training"):
            return True
    except BlockingIOError:
        return False


def test_stops_and_kills_of_one_of_several_lose_nothing(here):
    asked = command("tokenizer", "cut", "training.optimizer.steps=40")
    ran(of_torchrun(2), ddt, *command("tokenizer", "whole", "training.optimizer.steps=40"))
    running = Group([{}], parent, of_torchrun(2), *asked)
    until(drawing(), running)
    running.processes[0].kill()
    until(is_free)

    running = Group([{}], ddt, *asked, "devices=2")
    until(drawing(), running)
    os.kill(running.processes[0].pid, signal.SIGTERM)
    codes, said = running.ended()
    assert codes == [143] and "stopped; run the same command again" in said and "going on at step" in said, said
    reached = Path("runs/cut/last.ckpt").stat().st_mtime_ns

    running = Group([{}], ddt, *asked, "devices=2")
    until(drawing(), running)
    children = subprocess.run(["pgrep", "-P", str(running.processes[0].pid)], capture_output=True, text=True).stdout
    began = time.monotonic()
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    codes, said = running.ended()
    assert codes == [2] and "was ended by SIGKILL" in said and "Traceback" not in said, said
    assert time.monotonic() - began < 60
    assert Path("runs/cut/last.ckpt").stat().st_mtime_ns == reached

    codes, said = ran(of_torchrun(2), ddt, *asked)
    assert codes == [0, 0] and "going on at step" in said, said
    assert Path("runs/cut/metrics.csv").read_text() == Path("runs/whole/metrics.csv").read_text()
    assert same(weights("runs/cut", "tokenizer"), weights("runs/whole", "tokenizer"))


def test_a_signal_that_comes_while_processes_agree_is_not_forgotten():
    noted = Noted()

    def reduce(said, reduce_op):
        if noted.number is None:
            noted(signal.SIGTERM)
        return said

    strategy = SimpleNamespace(world_size=2, root_device="cpu", reduce=reduce)
    trainer = SimpleNamespace(strategy=strategy, is_global_zero=True, global_step=3, should_stop=False)
    recorder = RunRecorder(Path("metrics.csv"), lambda trainer: None, "train", 80, noted)
    recorder._trainer, recorder._saved, recorder._took = trainer, time.monotonic(), 0.0
    recorder.progress, recorder.due = SimpleNamespace(update=lambda step: None), lambda trainer: True
    recorder.on_train_batch_end(trainer, None, None, None, 0)
    assert not trainer.should_stop  # the other process does not know of it
    recorder.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop


def test_a_run_of_two_goes_on_with_one_and_with_three(here):
    # At this rate nothing is learned, so that the loss of a step says which samples it was made of.
    own = ["training.optimizer.lr=1e-7", "batch_size=12"]
    sharded = command("tokenizer", "three", *own, "strategy=fsdp2")
    codes, said = ran(of_torchrun(2), stopped, 1, 3, signal.SIGINT, *sharded)
    assert codes == [130, 130] and Path("runs/three/last.ckpt").is_dir(), said
    export_run(Path("runs/three"))
    codec, saved = Codec.from_pretrained("runs/three"), saved_in("runs/three")
    for part, model in (("tokenizer", codec.tokenizer), ("decoder.network", codec.decoder.network)):
        assert all(torch.equal(tensor, saved[f"{part}.{name}"]) for name, tensor in model.state_dict().items())
    assert torch.equal(codec.decoder.codebook, codec.tokenizer.embed(torch.arange(64)))
    shutil.copytree("runs/three", "runs/one", symlinks=True)
    for name, count in (("three", 3), ("one", 1)):
        codes, said = ran(of_torchrun(count), ddt, *sharded, f"name={name}")
        assert codes == [0] * count and "going on at step 4" in said, said
    train("tokenizer", "whole", *LONGER["tokenizer"], *own, "strategy=ddp", "compile=off", "device=cpu")
    one, three, whole = (read_metrics(Path(f"runs/{name}/metrics.csv"))["loss"] for name in ("one", "three", "whole"))
    assert one[0] == three[0] == whole[0] == [10, 20]
    assert one[1] == pytest.approx(whole[1], rel=1e-3) and three[1] == pytest.approx(whole[1], rel=1e-3)


def test_a_sharded_language_model_is_exported_and_goes_on_where_some_weights_have_not_learned_yet(here, monkeypatch):
    """Until `new_rows_steps` the optimizer knows of the rows of tokens alone."""
    asked = command("pretrain", "two", "strategy=fsdp2")
    codes, said = ran(of_torchrun(2), stopped, 0, 2, signal.SIGTERM, *asked)
    assert codes == [143, 143] and "stopped; run the same command again" in said, said

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "use", None)  # nothing is kept in memory
        export_run(Path("runs/two"))
    saved, exported = saved_in("runs/two"), weights("runs/two", "pretrain")
    assert exported and all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in exported.items())

    codes, said = ran(of_torchrun(2), ddt, *asked)
    assert codes == [0, 0] and "going on at step 3" in said, said
    compare("pretrain")


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
