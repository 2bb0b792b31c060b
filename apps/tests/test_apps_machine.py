"""`ddt doctor`: what it finds, and that each known trap is named with its remedy."""

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.machine import doctor

ddt = CliRunner()


def traps(monkeypatch, **versions):
    """What is told where packages have these versions."""
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name.replace("-", "_"), "1.0"))
    monkeypatch.setattr(doctor, "_fails", lambda *_: "RuntimeError: operator torchvision::nms does not exist")
    return {finding.what: finding.trap for finding in doctor.software() if finding.trap}


def test_a_sound_machine_has_no_trap(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "backends", dict, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "LEAST_FREE", 0.0)
    done = ddt.invoke(app, ["doctor", str(tmp_path / "not" / "there")])
    lines = done.output.splitlines()
    assert [line.split("  ")[0] for line in lines][:5] == ["python", "ddt", "libraries", "cpu", "accelerator"]
    assert f"GB free at {tmp_path}" in done.output
    assert done.exit_code == int(any("    ! " in line for line in lines))


@pytest.mark.parametrize(
    ("versions", "where", "said"),
    [
        ({"ddt_llm": "0.1.3", "torchvision": ""}, "ddt", "a stranger's package"),
        ({"lightning": "2.6.3", "torchvision": ""}, "libraries", "steals credentials"),
        ({}, "torchvision", r"nms does not exist: it is of another torch; remove it"),
    ],
)
def test_packages_that_are_known_traps_are_named(monkeypatch, versions, where, said):
    found = traps(monkeypatch, **versions)
    assert list(found) == [where] and said in found[where]


def test_a_machine_that_sets_traps_is_told_so(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(doctor, "HUB", ("localhost", 1))
    monkeypatch.setattr(doctor, "LEAST_FREE", 1e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    monkeypatch.setattr("ddt_apps.run.devices.backends", lambda: {"torch_npu": "ImportError: libhccl.so"})
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    done = ddt.invoke(app, ["doctor", str(tmp_path)])
    assert done.exit_code == 1
    assert "set OMP_NUM_THREADS=" in done.output and "GB are free; a run may not be able to save" in done.output
    assert "localhost does not answer; Hub ids need it" in done.output
    if torch.version.cuda is None:
        assert f"there is an NVIDIA GPU, and torch {torch.__version__} has no CUDA" in done.output
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "torch_npu: ImportError: libhccl.so; its driver is not here" in ddt.invoke(app, ["doctor"]).output


def test_memory_is_that_of_the_container(monkeypatch):
    limits = {"/sys/fs/cgroup/memory.max": "1000000\n"}
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in limits)
    monkeypatch.setattr(Path, "read_text", lambda self: limits[str(self)])
    assert doctor.memory() == 1_000_000
    limits.clear()
    assert doctor.memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
