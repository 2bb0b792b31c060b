"""Run folders: an interrupted run equals an uninterrupted one, and nothing is done twice."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar
from unittest.mock import patch

import lightning
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from ddt_apps.run.config import load_config
from ddt_apps.run.devices import pick_precision
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.run.folder import Run
from ddt_apps.run.metrics import MetricsFile, read_metrics
from ddt_apps.run.nan_guard import NaNGuard
from ddt_apps.run.progress import StageProgress
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.tokenizer import TrainTokenizer


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    verb: ClassVar[str] = "line"
    name: str = "line"
    steps: int = 12
    device: str = "cpu"
    precision: str = "32-true"
    gradient_clip: float | None = None
    loggers: tuple[str, ...] = ()


class Line(lightning.LightningModule):
    """Fit a line; noise is a function of the step, as the architecture asks."""

    def __init__(self, at_step=lambda step: None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.at_step = at_step
        self.seen = []

    def training_step(self, batch, index):
        torch.manual_seed(self.global_step)
        self.seen.append(batch[:, 0].tolist())
        self.at_step(self.global_step)
        loss = (self.layer(batch + 0.01 * torch.randn_like(batch)) - batch.sum(1, keepdim=True)).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Numbers(lightning.LightningDataModule):
    """Batch s is a function of s; continues where the checkpoint says."""

    start = 0

    def train_dataloader(self):
        rows = torch.arange(48 * 4, dtype=torch.float32).reshape(48, 4) / 192
        batches = [[4 * step + i for i in range(4)] for step in range(12)]
        return DataLoader(rows, batch_sampler=Resumable(batches, self.start))

    def state_dict(self):
        return {"step": self.trainer.global_step}

    def load_state_dict(self, state):
        self.start = state["step"]


class Resumable:
    def __init__(self, batches, start):
        self.batches, self.start = batches, start

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches[self.start :])


def fit(folder, at_step=lambda step: None, save_every_seconds=1e9):
    torch.manual_seed(0)
    module = Line(at_step)
    run = Run(folder, Config())
    with patch.multiple(RunRecorder, log_every=2, save_every_seconds=save_every_seconds):
        run.fit(module, Numbers())
    return module, run


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_training_writes_rows_and_a_checkpoint(tmp_path):
    _, run = fit(tmp_path / "run")
    steps, _ = read_metrics(run.metrics)["loss"]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert run.checkpoint.exists()
    assert not run.finished


def test_slow_checkpoints_are_written_less_often(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        Run, "save_checkpoint", lambda self, trainer: (written.append(trainer.global_step), time.sleep(0.1))
    )
    fit(tmp_path / "run", save_every_seconds=1e-6)
    assert written == [1, 12]  # twelve quick steps are over before a twentieth of the time went into writing


@pytest.fixture
def python_handles_signals():
    """A background job starts with SIGINT ignored; these tests are about a foreground one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_run_continues_exactly(tmp_path, number):
    whole, run = fit(tmp_path / "whole")
    error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(error):
        fit(tmp_path / "cut", lambda step: step == 4 and os.kill(os.getpid(), number))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest, cut = fit(tmp_path / "cut")
    assert rest.seen == whole.seen[5:]
    assert same(rest, whole)
    assert cut.metrics.read_text() == run.metrics.read_text()


def test_a_killed_run_continues_exactly(tmp_path):
    whole, run = fit(tmp_path / "whole")
    killed = (
        "import importlib.util, os, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('killed', {__file__!r})\n"
        "this = importlib.util.module_from_spec(spec); sys.modules['killed'] = this; spec.loader.exec_module(this)\n"
        f"this.fit(pathlib.Path({str(tmp_path / 'cut')!r}), lambda step: step == 7 and os.kill(os.getpid(), 9), 0.0)\n"
    )
    assert subprocess.run([sys.executable, "-c", killed], capture_output=True).returncode == -signal.SIGKILL
    rest, cut = fit(tmp_path / "cut")
    assert rest.seen == whole.seen[7:]
    assert same(rest, whole)
    assert cut.metrics.read_text() == run.metrics.read_text()


def test_a_run_killed_after_its_last_step_gets_its_weights_back(tmp_path):
    whole, _ = fit(tmp_path / "run")
    again, _ = fit(tmp_path / "run")
    assert again.seen == []
    assert same(again, whole)


def test_finished_is_recorded(tmp_path):
    run = Run(tmp_path / "run", Config())
    assert not run.finished
    run.finish()
    again = Run(tmp_path / "run", Config())
    assert again.finished


def test_a_run_from_before_decoders_knew_their_steps_goes_on(tmp_path):
    def config(*overrides):
        return load_config(TrainTokenizer, "tiny/tokenizer", ["data=data", *overrides])

    Run(tmp_path, config()).start()
    file = tmp_path / "config.yaml"
    assert file.read_text().count("  num_steps: null\n") == 1
    file.write_text(file.read_text().replace("  num_steps: null\n", ""))
    assert Run(tmp_path, config()).config.codec.decoder.usual_steps == 1  # accepted
    with pytest.raises(ValueError, match=r"was started with codec\.num_steps=None, not 2"):
        Run(tmp_path, config("codec.num_steps=2"))


def test_a_checkpoint_of_nobody_knows_what_is_refused(tmp_path):
    _, run = fit(tmp_path / "run")
    (run.folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"last.ckpt is of a run whose config.yaml is gone; put that back"):
        Run(tmp_path / "run", Config())


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    Run(tmp_path / "run", Config()).start()
    with pytest.raises(ValueError, match=r"run was started with steps=12, not 13; use another name=\.\.\., or delete"):
        Run(tmp_path / "run", Config(steps=13))


def test_a_folder_of_another_version_is_refused(tmp_path):
    Run(tmp_path / "run", Config()).start()
    (tmp_path / "run" / "config.yaml").write_text("stepz: 3\n")
    with pytest.raises(ValueError, match="another version"):
        Run(tmp_path / "run", Config())


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_cuda_computes_in_bf16_where_it_can_and_never_by_itself_in_fp16(monkeypatch, has_bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert pick_precision("auto", torch.device("cuda")) == precision
    assert pick_precision("16-mixed", torch.device("cuda")) == "16-mixed"


def test_an_unknown_device_is_refused(tmp_path):
    run = Run(tmp_path / "run", Config(device="npu"))
    with pytest.raises(ValueError, match=r"device 'npu' is not here"):
        run.fit(Line(), Numbers())
    assert not run.folder.exists()


def test_a_run_is_fitted_as_its_settings_say(tmp_path):
    """Steps, accumulation, clipping, device, precision and the guard are those of its settings."""
    found = {}

    class Look(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            found.update(clip=trainer.gradient_clip_val, device=module.device.type, precision=trainer.precision)
            found["guards"] = sum(isinstance(each, NaNGuard) for each in trainer.callbacks)

    config = Config(steps=3, accumulate=4, gradient_clip=0.5)
    module = Line()
    Run(tmp_path / "run", config).fit(module, Numbers(), [Look()])
    assert len(module.seen) == config.batches == 12 and module.global_step == 3
    assert found == {"clip": 0.5, "device": "cpu", "precision": "32-true", "guards": 1}


def test_every_run_is_guarded_against_nan(tmp_path):
    def poison(step):
        if step == 5:
            with torch.no_grad():
                module.layer.bias.fill_(torch.nan)

    module, run = Line(poison), Run(tmp_path / "run", Config())
    with pytest.raises(ValueError, match=r"not finite at step 5; the state before it is in .*last\.ckpt"):
        run.fit(module, Numbers())
    assert not run.finished and run.checkpoint.exists()


def test_metrics_drop_rows_after_the_checkpoint_and_a_torn_row(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        metrics.append(step, {"loss": 1 / step})
    metrics.append(40, {"loss": 0.5, "usage": 0.9})
    with metrics.path.open("a") as file:
        file.write("50,0.1")
    MetricsFile(tmp_path / "metrics.csv", step=20).append(30, {"loss": 0.25})
    assert metrics.path.read_text().splitlines() == ["step,loss", "10,0.1", "20,0.05", "30,0.25"]


def test_progress_in_a_log_prints_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with StageProgress("train", 100, start=40, console=Console(file=log, width=200)) as bar:
        for step in range(41, 101):
            now[0] += 1.0
            bar.update(step, loss=0.5)
    lines = log.getvalue().splitlines()
    assert lines[0] == "train 41/100 loss 0.5 1 it/s ETA 0:59"  # soon, so that one sees that it works
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in (41, 51, 61, 71, 81, 91, 100)]
    assert lines[-1] == "train 100/100 loss 0.5 1 it/s in 1:00"
    with StageProgress("pack", 3, console=Console(file=log, width=200)) as bar:
        for step in range(1, 4):
            now[0] += 0.4
            bar.update(step)
    assert [line for line in log.getvalue().splitlines() if line.startswith("pack")] == ["pack 3/3 2.5 it/s in 0:01"]
