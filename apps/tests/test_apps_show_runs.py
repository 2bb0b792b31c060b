"""`ddt runs`: how runs stand, and a page of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.evaluation.scores import Scores
from ddt_apps.run.config import load_config
from ddt_apps.run.folder import Run
from ddt_apps.run.metrics import MetricsFile
from ddt_apps.train.settings import SETTINGS
from ddt_data.shards.lock import locked

ddt = CliRunner()
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d"


def begin(name, verb, *overrides, rows=()):
    needed = {"data": "x", "tokenizer": "x", "model": "x"}
    cls = SETTINGS[verb]
    given = [f"{key}={value}" for key, value in needed.items() if key in cls.__dataclass_fields__]
    run = Run(Path("runs") / name, load_config(cls, None, [*given, f"name={Path(name).name}", *overrides]))
    run.start("32-true")
    for step, values in rows:
        MetricsFile(run.metrics, step).append(step, values)
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs: one is finished, one was stopped, and one in a folder of its own has just begun."""
    monkeypatch.chdir(tmp_path)
    begin("a", "pretrain", "optimizer.steps=30", rows=[(10, {"loss": 2.5}), (30, {"loss": 1.25, "lr": 0.5})]).finish()
    begin("b", "train-renderer", "steps=100", rows=[(10, {"loss": 1.0}), (20, {"loss": float("nan"), "mse": 0.1})])
    begin("all/c", "train-tokenizer", "training.optimizer.steps=500")


def listed(*arguments):
    result = ddt.invoke(app, ["runs", *arguments])
    assert result.exit_code == 0, result.output
    return [re.split(" {2,}", line) for line in result.output.splitlines()]


def test_runs_are_listed_as_they_stand(runs):
    header, *rows = listed()
    assert header == ["run", "verb", "state", "steps", "loss", "written"]
    assert [row[:5] for row in rows] == [
        ["runs/a", "pretrain", "finished", "30/30", "1.25"],
        ["runs/b", "train-renderer", "stopped", "20/100", "nan"],
        ["runs/all/c", "train-tokenizer", "stopped", "0/500", "-"],
    ]
    assert all(re.fullmatch(WHEN, row[5]) for row in rows)
    with locked("runs/b"):
        assert [row[2] for row in listed()[1:]] == ["finished", "running", "stopped"]
    assert listed("runs/b", "runs/a", "runs/all", "runs/a")[1:] == [rows[1], rows[0], rows[2]]


def test_scripts_get_an_object_a_line(runs):
    lines = ddt.invoke(app, ["runs", "--json"]).output.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["run"] for line in lines] == ["runs/a", "runs/b", "runs/all/c"]
    found = json.loads(lines[0])
    assert re.fullmatch(WHEN, found.pop("written"))
    assert found == {"run": "runs/a", "verb": "pretrain", "state": "finished", "step": 30, "steps": 30, "loss": 1.25}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "error: nowhere: no such folder"),
        (["."], "error: no run in .; ddt pretrain"),
        (["--out", "page.pdf"], "error: --out 'page.pdf' must end in .html"),
    ],
)
def test_what_is_no_run_is_told_in_a_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ddt.invoke(app, ["runs", *arguments])
    assert result.exit_code == 2 and result.stderr.startswith(said) and result.stderr.count("\n") == 1


def test_the_page_of_several_runs_shows_what_is_not_alike(runs):
    assert len(listed("runs", "--out", "page.html")) == 5
    page = Path("page.html").read_text()
    curves = page[page.index("<h2>Curves") : page.index("<h2>Settings")]
    labels = re.findall(r'aria-label="(.*?)"', curves)
    assert labels == ["loss over step: runs/a, runs/b", "lr over step: runs/a", "mse over step: runs/b"]
    assert re.findall(r'circle class="(c\d)"', curves)[-1] == "c1"  # a run has one colour in all charts
    settings = page[page.index("<h2>Settings") :]
    assert ">optimizer.steps<" in settings and ">training.optimizer.steps<" in settings and ">seed<" not in settings
    assert "Samples" not in page and "Scores" not in page


def test_the_page_of_a_run_is_its_report(runs):
    samples = Path("runs/a/samples")
    samples.mkdir()
    for step in range(5, 45, 5):
        Image.fromarray(np.full((8, 16, 3), step, np.uint8)).save(samples / f"{step:08}.png")
    Scores("language", {"name": "a"}, {"seed": 0}, {"bits": 7.5, "bits_standard_error": 0.25}, {}).save(
        Path("runs/a/evaluation/language")
    )
    assert listed("runs/a", "--out", "page.html")[-1] == ["open page.html"]
    page = Path("page.html").read_text()
    assert re.findall(r"<figcaption>(step \d+)", page) == ["step 5", "step 15", "step 25", "step 40"]
    assert "7.5&nbsp;&plusmn;&nbsp;0.25" in page and ">seed<" in page and "<h1>runs/a</h1>" in page
