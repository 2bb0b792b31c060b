"""Devices: what is asked for is taken or refused in a line, and Lightning puts a run where it was told to."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import ALL, VERBS, train
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run.devices import DEVICE, backends, pick_device
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes

STAND_IN = Path(__file__).with_name("stand_in_npu.py")
# Two processes on two NPUs: what Lightning makes of that, up to the first contact with the other one.
PLACED = f"""
import os, sys
sys.path.insert(0, {str(STAND_IN.parent)!r})
import stand_in_npu, torch, lightning
os.environ |= {{"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}}
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
os._exit(0)
"""


def run(*command, **named):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **named)


def test_a_run_on_a_device_that_lightning_does_not_know_computes_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scenes(Path("sc"), 12, level="tiny")
    own = [*VERBS["tokenizer"][2], "held_out=0", "watch_every=100", "compile=off"]
    train("tokenizer", "cpu", *own)
    settings = ["train-tokenizer", "tiny/tokenizer", *ALL, *own, "name=npu"]
    done = run(str(STAND_IN), *settings, "device=npu")
    assert done.returncode == 0, done.stderr
    assert "weights on npu in 32-true" in done.stderr
    cpu, npu = (read_metrics(Path(f"runs/{name}/metrics.csv"))["loss"] for name in ("cpu", "npu"))
    assert cpu[0] == npu[0] == [6] and npu[1] == pytest.approx(cpu[1], rel=1e-4)
    mixed = [*settings, "precision=auto", "name=mixed"]
    assert "on npu in bf16-mixed" in run(str(STAND_IN), *mixed).stderr  # which auto takes, if it is there


def test_several_processes_on_such_devices_meet_by_their_own_backend():
    done = run("-c", PLACED)
    assert done.stdout.endswith("placed\n"), done.stderr


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
    found = {"PYTHONPATH": ":".join([str(tmp_path), *sys.path]), "PATH": ""}
    assert "Failed to load the backend extension: torch_npu" in run("-c", "import torch", env=found).stderr
    make_scenes(tmp_path / "sc", 12, level="tiny")
    settings = ["train-tokenizer", "tiny/tokenizer", f"data={tmp_path}/sc", "name=x"]
    done = run("-m", "ddt_apps", *settings, "device=npu", env=found, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "torch_npu is installed and does not load (ImportError: libhccl.so: cannot open" in done.stderr
    settings += [*ALL, *VERBS["tokenizer"][2], f"data={tmp_path}/sc", "compile=off"]
    done = run("-m", "ddt_apps", *settings, env=found, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "computing on the CPU: torch_npu is installed and does not load" in done.stderr
    assert backends() == {} or all(not why for why in backends().values())
