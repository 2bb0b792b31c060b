"""Loggers by name and callbacks by import path: what watches a run beside `metrics.csv`."""

import json
import os
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import lightning
import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run import loggers
from ddt_apps.run.config import load_config, save_config
from ddt_apps.run.folder import Run
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.own_code import load_callbacks
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.settings import Pretrain, TrainTokenizer

WATCH = """
import lightning

class Watch(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        module.log("twice", 2.0 * trainer.global_step)

class Picky(Watch):
    def __init__(self, needed): ...

def made():
    return Watch()

number = 3
"""


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    verb: ClassVar[str] = "line"
    name: str = "line"
    steps: int = 20
    device: str = "cpu"
    precision: str = "32-true"


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Ones(lightning.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.ones(80, 4), batch_size=4)


def train(folder, **settings):
    config = Config(**settings)
    run = Run(folder / "run", config)
    run.watchers = load_callbacks(config.callbacks)
    run.fit(Line(), Ones())
    return run


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "watch_of_mine.py").write_text(WATCH)
    return tmp_path


@pytest.mark.parametrize("path", ["watch_of_mine.py:Watch", "watch_of_mine.Watch", "watch_of_mine.made"])
def test_what_a_callback_of_ones_own_logs_stands_in_the_metrics(watch, path):
    run = train(watch, callbacks=(path,), loggers=())
    assert read_metrics(run.metrics)["twice"] == ([10, 20], [20, 40])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none.py:Watch", "none.py: no such file"),
        ("watch_of_mine.py:Wach", "'watch_of_mine.py' has no 'Wach'"),
        ("watch_of_mine.Wach", "'watch_of_mine' has no 'Wach'"),
        (
            "no_such.module.Watch",
            "'no_such.module.Watch' cannot be imported (No module named 'no_such'); write package",
        ),
        ("Watch", "'Watch' cannot be imported (Empty module name); write package.module.Name, or file.py:Name"),
        ("watch_of_mine.py:Picky", "callbacks: 'watch_of_mine.py:Picky' is no lightning.Callback that can be made"),
        ("watch_of_mine.number", "callbacks: 'watch_of_mine.number' is no lightning.Callback"),
    ],
)
def test_what_is_no_callback_is_told_before_any_data_is_opened(watch, path, said):
    result = CliRunner().invoke(app, ["pretrain", "tiny/pretrain", "data=nowhere", f"callbacks=['{path}']"])
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {said}") and result.stderr.count("\n") == 1


def test_a_logger_that_is_not_installed_or_not_known_is_told(watch, monkeypatch):
    found = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    for given, said in (
        ("loggers=[tensorboard,wandb]", "loggers: wandb is not installed; install it (pip install wandb), or leave it"),
        ("loggers=[wanbd]", "loggers[0] must be one of 'tensorboard', 'wandb', 'mlflow', 'trackio', not 'wanbd'; did"),
        ("tensorboard=false", "unknown key 'tensorboard'; it is loggers=[tensorboard], or loggers=[] for none, now"),
    ):
        result = CliRunner().invoke(app, ["pretrain", "tiny/pretrain", "data=nowhere", given])
        assert result.exit_code == 2 and result.stderr.startswith(f"error: {said}"), result.stderr


@pytest.mark.parametrize(("chosen", "there"), [(None, True), (("tensorboard",), True), ((), False)])
def test_tensorboard_logs_unless_it_is_left_out(tmp_path, chosen, there):
    pytest.importorskip("tensorboard")
    folder = train(tmp_path, loggers=chosen).folder
    assert (folder / "tensorboard").is_dir() == there and not (folder / loggers.IDS).exists()


class Trackio:
    """What stands in for trackio."""

    def __init__(self):
        self.begun, self.logged, self.config, self.open = [], [], {}, False

    def init(self, project, name, resume):
        assert not self.open
        self.begun.append((project, name, resume))
        self.open = True
        log = lambda values, step: self.logged.append((step, values["loss"]))  # noqa: E731
        return SimpleNamespace(id="abc", config=self.config, log=log)

    def finish(self):
        self.open = False


def test_a_run_that_goes_on_goes_on_in_its_logger(tmp_path, monkeypatch):
    there = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", there)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    settings = {"loggers": ("trackio",), "steps": 10}
    run = train(tmp_path, **settings)
    assert [step for step, _ in there.logged] == [9] and there.config["gradient_clip"] == 1.0 and not there.open
    assert json.loads((run.folder / loggers.IDS).read_text()) == {"trackio": "abc"}
    train(tmp_path, **settings)
    assert there.begun == [("ddt", "line", "never"), ("ddt", "line", "allow")] and not there.open
    with pytest.raises(ZeroDivisionError), loggers.open_loggers(replace(run.config, name="b"), tmp_path, True):
        raise ZeroDivisionError
    assert not there.open and there.begun[-1] == ("ddt", "b", "never")


@pytest.mark.parametrize(("before", "now"), [("true", None), ("false", ())])
@pytest.mark.parametrize("cls", [Pretrain, TrainTokenizer])
def test_a_run_of_before_keeps_its_tensorboard(tmp_path, before, now, cls):
    file = tmp_path / "config.yaml"
    save_config(load_config(cls, None, ["data=x"]), file)
    values = yaml.safe_load(file.read_text())
    del values["loggers"], values["callbacks"]
    file.write_text(yaml.safe_dump(values) + f"tensorboard: {before}\n")
    assert load_config(cls, file, upgraded=cls.upgraded).loggers == now
    Run(
        tmp_path, load_config(cls, None, ["data=x", f"loggers=[{'' if now is None else 'trackio'}]"])
    )  # both may differ
    assert os.listdir(tmp_path) == ["config.yaml"]
