"""A run remembers what it began with, takes what may change on the way, and leaves its model when asked."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import VERBS, cut, make_all, same, train, weights

from ddt_apps.run.fitting import RunRecorder
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.origin import digest
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train.export import export_run
from ddt_data import pack_text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Data, and a finished run of each verb."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
    return folder


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(RunRecorder, "log_every", 1)
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 0.0)


@pytest.mark.parametrize("source", ["sc", "ids", "words", "runs/tokenizer", "runs/pretrain"])
def test_a_digest_is_of_what_is_there_and_not_of_where(here, source):
    first = digest(source)
    assert len(first) == 16 and digest(f"{source}/") == digest(Path(source).resolve()) == first
    shutil.copytree(source, "elsewhere/deep")
    assert digest("elsewhere/deep") == first
    (Path("elsewhere/deep") / "README.md").write_text("about it")
    assert digest("elsewhere/deep") == first
    file = next(path for pattern in ("manifest.json", "*/*.safetensors") for path in Path(source).glob(pattern))
    data = bytearray((Path("elsewhere/deep") / file.relative_to(source)).read_bytes())
    place = data.index(b'"sha256": "') + 12 if file.suffix == ".json" else len(data) - 3
    data[place] = ord("0") if data[place] != ord("0") else ord("1")
    (Path("elsewhere/deep") / file.relative_to(source)).write_bytes(data)
    assert digest("elsewhere/deep") not in ("", first)


def replace_source(source):
    """Let something else lie there: other scenes, another text, a model with a changed weight."""
    folder = Path(source)
    if source in ("sc", "ids"):
        shutil.rmtree("sc")
        make_scenes(Path("sc"), 12, level="tiny", seed=7)
        if source == "ids":
            shutil.rmtree("ids")
            tokenize_shards(Path("sc"), Path("runs/tokenizer"), folder)
    elif source == "words":
        shutil.rmtree(folder)
        pack_text(["A kite flies."] * 40, folder)
    else:
        file = next(folder.glob("*/model.safetensors"))
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")


@pytest.mark.parametrize(
    ("verb", "setting", "source"),
    [
        ("tokenizer", "data", "sc"),
        ("renderer", "tokenizer", "runs/tokenizer"),
        ("pretrain", "data", "ids"),
        ("pretrain", "text", "words"),
        ("sft", "model", "runs/pretrain"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_what_a_run_began_with_may_move_but_not_change(here, verb, setting, source, finished, capsys):
    name = verb if finished else "cut"
    if not finished:
        cut(verb, name)
    os.rename(source, "moved")
    if finished:
        train(verb, name, f"{setting}=moved")
        assert f"runs/{name} is finished: its model is in runs/{name}/" in capsys.readouterr().out
    os.rename("moved", source)
    replace_source(source)
    with pytest.raises(ValueError, match=rf"runs/{name} was begun with {setting}={source}, which holds something else"):
        train(verb, name)
    os.rename(source, "moved")
    with pytest.raises(ValueError, match=rf"begun with {setting}={source}, not moved, which holds something else"):
        train(verb, name, f"{setting}=moved")


def test_a_cut_run_goes_on_from_moved_data_in_a_moved_folder_as_if_nothing_had_happened(here):
    cut("tokenizer", "cut")
    os.rename("sc", "moved")
    os.rename("runs/cut", "runs/other")
    free = ["data=moved/", "workers=1", "watch_every=3", "device=cpu", "precision=auto"]
    if "bf16" not in json.loads(Path("runs/other/origin.json").read_text())["precision"]:
        free[-1] = "precision=32-true"
    run = train("tokenizer", "other", *free)
    assert same(weights(run, "tokenizer"), weights("runs/tokenizer", "tokenizer"))
    assert "data: moved/\n" in (run / "config.yaml").read_text()


def test_each_part_of_a_mixture_is_compared_and_its_share(here):
    make_scenes(Path("more"), 12, level="tiny", seed=3)
    cut("tokenizer", "cut", "data=sc:0.5,more:0.5")
    for data, said in [("sc:0.5,more:0.4", "more:0.5, not more:0.4"), ("sc:0.5", "sc:0.5, not"), ("more:1", "sc:0.5")]:
        with pytest.raises(ValueError, match=f"runs/cut was begun with data={said}" if "," in data else "begun with"):
            train("tokenizer", "cut", f"data={data}")
    os.rename("more", "less")
    train("tokenizer", "cut", "data=sc:0.5,less:0.5")


def test_a_finished_run_whose_data_are_gone_says_that_it_is_finished_or_that_its_model_is_gone(here, capsys):
    shutil.rmtree("sc")
    train("renderer", "renderer")
    assert "runs/renderer is finished: its model is in runs/renderer/renderer" in capsys.readouterr().out
    shutil.rmtree("runs/renderer/renderer")
    with pytest.raises(FileNotFoundError, match=r"the model in runs/renderer/renderer is gone; delete runs/renderer"):
        train("renderer", "renderer")


@pytest.mark.parametrize(
    ("verb", "steps"),
    [("tokenizer", "training.optimizer.steps"), ("renderer", "steps"), ("pretrain", "optimizer.steps")],
)
def test_steps_may_be_raised_and_lowered_to_what_is_done(here, verb, steps):
    with pytest.MonkeyPatch.context() as patch:  # killed after the last step, before the export
        patch.setattr("ddt_apps.run.folder.Run.finish", lambda run: None)
        train(verb, "run")
    train(verb, "run", f"{steps}=9")
    assert read_metrics(Path("runs/run/metrics.csv"))["loss"][0] == list(range(1, 10))
    (change,) = json.loads(Path("runs/run/origin.json").read_text())["changes"]
    assert change == {"step": 6, "setting": steps, "from": 6, "to": 9}
    with pytest.raises(ValueError, match=rf"runs/run was started with {re.escape(steps)}=9, not 12"):
        train(verb, "run", f"{steps}=12")  # it is finished
    cut(verb, "low", f"{steps}=8", step=5)
    with pytest.raises(ValueError, match=r"runs/low/last\.ckpt holds 5 steps already, more than the 4"):
        train(verb, "low", f"{steps}=4")
    train(verb, "low", f"{steps}=5")
    assert Path("runs/low/done.json").exists() and read_metrics(Path("runs/low/metrics.csv"))["loss"][0][-1] == 5


def test_a_rate_that_is_changed_on_the_way_is_that_of_the_next_step(here):
    for verb, group in (("tokenizer", "training.optimizer"), ("pretrain", "optimizer")):
        cut(verb, "cut", f"{group}.lr=1e-3")
        train(verb, "cut", f"{group}.lr=5e-4")
        old = read_metrics(Path("runs/cut/metrics.csv"))["lr"][1]
        train(verb, "plain", f"{group}.lr=5e-4")
        new = read_metrics(Path("runs/plain/metrics.csv"))["lr"][1]
        assert old[3:] == new[3:] and all(a == pytest.approx(2 * b) for a, b in zip(old[:3], new[:3], strict=True))
        shutil.rmtree("runs/cut")
        shutil.rmtree("runs/plain")


def test_what_decides_the_result_stays_as_it_was(here):
    cut("tokenizer", "cut")
    for setting in ("seed=1", "batch_size=2", "codec.encoder.width=32", "training.optimizer.optimizer=adamw"):
        key = setting.split("=")[0]
        with pytest.raises(ValueError, match=rf"runs/cut was started with {re.escape(key)}="):
            train("tokenizer", "cut", setting)


@pytest.mark.parametrize("verb", VERBS)
def test_the_model_of_a_stopped_run_is_exported_and_the_run_goes_on(here, verb, capsys):
    cut(verb, "cut", step=4)
    before = Path("runs/cut/last.ckpt").read_bytes()
    export_run(Path("runs/cut"))
    assert "runs/cut is not finished and can go on: its model is in runs/cut/" in capsys.readouterr().out
    assert Path("runs/cut/last.ckpt").read_bytes() == before and not Path("runs/cut/done.json").exists()
    saved = list(torch.load("runs/cut/last.ckpt", weights_only=True)["state_dict"].values())
    for name, tensor in weights("runs/cut", verb).items():
        assert name == "codebook" or any(torch.equal(tensor, each) for each in saved), name
    run = train(verb, "cut")
    assert same(weights(run, verb), weights(f"runs/{verb}", verb))


def test_there_is_nothing_to_export_where_nothing_was_saved(here):
    with pytest.raises(FileNotFoundError, match=r"no training run in 'runs/none'"):
        export_run(Path("runs/none"))
    cut("tokenizer", "cut")
    Path("runs/cut/last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"runs/cut/last\.ckpt is not there"):
        export_run(Path("runs/cut"))
