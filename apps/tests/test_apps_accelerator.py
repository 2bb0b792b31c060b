"""Devices: what is asked for is taken or refused in a line, and Lightning puts a run where it was told to."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_ranks import of_torchrun, ran
from tiny_runs import ALL, VERBS, train
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run.devices import DEVICE, backends, pick_device
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes

# Two processes on two NPUs: what Lightning makes of that, up to the first contact with the other one.
PLACED = """
import stand_in_npu, torch, lightning
torch.distributed.Backend.register_backend("hccl", None, devices=["npu"])
from ddt_apps.run.accelerator import placement
from ddt_apps.run.devices import pick_device
device = pick_device()
trainer = lightning.Trainer(**placement(device, "bf16-mixed", "ddp", False), logger=False, enable_checkpointing=False)
strategy = trainer.strategy
assert strategy.root_device == torch.device("npu", 1), strategy.root_device
assert strategy._get_process_group_backend() == "hccl"
assert strategy.world_size == 2 and strategy.cluster_environment.global_rank() == 1
with trainer.precision_plugin.forward_context():
    assert torch.is_autocast_enabled("npu") and not torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("npu") == torch.bfloat16
print("placed", flush=True)
"""
# `ddt` twice in one process: what is said, and exit codes.
TWICE = """
import sys
from ddt_apps.__main__ import main
for more in (["device=npu"], []):
    sys.argv = ["ddt", *{settings}, *more]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code, flush=True)
"""


def on_npu(*arguments):
    """Run `ddt` where there is a stand-in for an NPU; return its exit code and what it said."""
    codes, said = ran([{}], exec, f"import stand_in_npu, tiny_ranks; tiny_ranks.ddt(*{arguments})")
    return codes[0], said


def test_a_run_on_a_device_that_lightning_does_not_know_computes_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scenes(Path("sc"), 12, level="tiny")
    own = [*VERBS["tokenizer"][2], "held_out=0", "watch_every=100", "compile=off"]
    train("tokenizer", "cpu", *own)
    settings = ["train-tokenizer", "tiny/tokenizer", *ALL, *own, "name=npu"]
    code, said = on_npu(*settings, "device=npu")
    assert code == 0 and "weights on npu in 32-true" in said, said
    cpu, npu = (read_metrics(Path(f"runs/{name}/metrics.csv"))["loss"] for name in ("cpu", "npu"))
    assert cpu[0] == npu[0] == [6] and npu[1] == pytest.approx(cpu[1], rel=1e-4)
    _, said = on_npu(*settings, "precision=auto", "name=mixed")
    assert "on npu in bf16-mixed" in said  # which auto takes, if it is there; the stand-in has no autocast


def test_several_processes_on_such_devices_meet_by_their_own_backend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes, said = ran(of_torchrun(2)[1:], exec, PLACED)
    assert codes == [0] and said.endswith("placed\n"), said


def test_what_is_not_here_is_refused_and_says_what_was_found(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    with pytest.raises(
        ValueError, match=r"device 'npu' is not here: torch .* finds no accelerator; it needs torch-npu"
    ):
        pick_device("npu")
    with pytest.raises(ValueError, match=r"device 'gpu' must be auto, cpu, cuda, mps, npu, xpu"):
        pick_device("gpu")
    assert pick_device() == torch.device("cpu")
    monkeypatch.setenv(DEVICE, "cuda")
    with pytest.raises(ValueError, match=r"device 'cuda' is not here"):
        pick_device()
    assert pick_device("cpu") == torch.device("cpu")


def test_verbs_take_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv(DEVICE, "cpu")  # put back at the end
    said = CliRunner().invoke(app, ["generate", "a fox", "--model", str(tmp_path), "--out", "a.png", "--device", "tpu"])
    assert said.exit_code == 2 and "no finished language model run" in said.output
    with pytest.raises(ValueError, match=r"device 'tpu' must be auto, cpu"):
        pick_device()


def test_torch_npu_without_its_driver_is_told_in_a_line(tmp_path):
    """It registers itself with torch, whose import then fails."""
    (tmp_path / "torch_npu.py").write_text(
        "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"
    )
    known = tmp_path / "torch_npu-2.13.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
    (known / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    found = {"env": {"PYTHONPATH": ":".join([str(tmp_path), *sys.path]), "PATH": ""}, "cwd": tmp_path}
    found |= {"capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", "import torch"], **found)
    assert "Failed to load the backend extension: torch_npu" in done.stderr
    make_scenes(tmp_path / "sc", 12, level="tiny")
    settings = ["train-tokenizer", "tiny/tokenizer", *ALL, *VERBS["tokenizer"][2], "name=x", "compile=off"]
    done = subprocess.run([sys.executable, "-c", TWICE.format(settings=settings)], **found)
    refused, trained = done.stderr.split("computing on the CPU: torch_npu is installed and does not load")
    assert "exit code 2" in done.stdout and "runs/x is finished" in done.stdout, done.stderr
    assert refused.count("\n") == 1
    assert "torch_npu is installed and does not load (ImportError: libhccl.so: cannot open" in refused
    assert "train-tokenizer 6/6" in trained
    assert backends() == {} or all(not why for why in backends().values())
