"""Precision of inference: what is made in bf16 says so, and is not taken for what is exact."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import make_all
from typer.testing import CliRunner

import ddt_apps.shards.tokenize
import ddt_tokenizer.precision
from ddt_apps.cli.main import app
from ddt_apps.evaluation import ReconstructionSettings, Scores, compare_scores, evaluate_reconstruction, load_model
from ddt_apps.evaluation.answers import Settings as AnswersSettings
from ddt_apps.models import load_pair
from ddt_apps.run.config import load_config
from ddt_apps.run.origin import digest
from ddt_apps.shards.tokenize import tokenize_shards, verify_shards
from ddt_apps.use.pictures import save_picture
from ddt_data import Manifest, ShardDataset, open_shards

RUN, SCENES = Path("runs/tokenizer"), Path("sc")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A finished run of each verb, and the ids of its pictures in both precisions."""
    folder = tmp_path_factory.mktemp("precision")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
        tokenize_shards(SCENES, RUN, Path("ids16"), precision="bf16")
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def has(request, monkeypatch):
    """Whether the device multiplies bf16."""
    for module in (ddt_tokenizer.precision, ddt_apps.shards.tokenize):
        monkeypatch.setattr(module, "multiplies_bf16", lambda device: request.param)
    return request.param


def test_an_id_folder_says_its_precision_and_an_exact_one_is_as_before():
    exact, rounded = Manifest.read("ids"), Manifest.read("ids16")
    assert set(exact.tokenizer) == {"fingerprint", "codebook_size", "num_tokens"}
    assert rounded.tokenizer == {**exact.tokenizer, "precision": "bf16"}
    for field in ("ids", "target_ids"):
        pairs = [(a[field], b[field]) for a, b in zip(ShardDataset("ids"), ShardDataset("ids16"), strict=True)]
        assert np.mean([a == b for a, b in pairs]) >= 0.95
    assert digest("ids") != digest("ids16")  # by which a run is continued on what it was begun with
    assert verify_shards(SCENES, RUN, Path("ids16")) == verify_shards(SCENES, RUN, Path("ids")) == 12


def test_folders_of_both_are_of_one_tokenizer_and_do_not_mix():
    fingerprint = Manifest.read("ids").tokenizer["fingerprint"]
    for folder in ("ids", "ids16", "ids16,ids16"):
        assert open_shards(folder, fingerprint)[0]["ids"].dtype == np.int64
    with pytest.raises(
        ValueError, match=r"tokenizer is .* in ids and .*'precision': 'bf16'.* in ids16; make them alike"
    ):
        open_shards("ids:0.5,ids16:0.5", fingerprint)


@pytest.mark.parametrize(("first", "second"), [("32", "bf16"), ("bf16", "32")])
def test_a_half_made_folder_is_not_finished_in_the_other_precision(first, second, tmp_path, monkeypatch):
    out = tmp_path / "ids"
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr("ddt_data.shards.building._publish", None)  # stopped before the end
        tokenize_shards(SCENES, RUN, out, precision=first)
    with pytest.raises(ValueError, match=rf"half made in precision {first}; go on with --precision {first}, or delete"):
        tokenize_shards(SCENES, RUN, out, precision=second)
    tokenize_shards(SCENES, RUN, out, precision=first)
    made = Path("ids" if first == "32" else "ids16")
    assert [shard.sha256 for shard in Manifest.read(out).shards] == [s.sha256 for s in Manifest.read(made).shards]


def test_long_exact_work_says_what_bf16_would_save_where_it_would(has, tmp_path, monkeypatch, capsys):
    clock = (tick**0.5 for tick in count())  # which is ever slower to tick, so that what comes later took less
    monkeypatch.setattr(ddt_apps.shards.tokenize.time, "perf_counter", lambda: next(clock))
    for name, long, precision in (("a", 60, "32"), ("b", 0.001, "bf16"), ("c", 0.001, "32")):
        monkeypatch.setattr(ddt_apps.shards.tokenize, "LONG", long)
        tokenize_shards(SCENES, RUN, tmp_path / name, precision=precision)
        said = "--precision bf16 would encode in 0." in (error := capsys.readouterr().err)
        assert said == (name == "c" and has), name
        assert ("slower than 32 here" in error) == (name == "b" and not has)
    assert Manifest.read(tmp_path / "c") == Manifest.read("ids")


VERBS = {
    "reconstruct": ["a.png", "--tokenizer", RUN, "--out", "again.png"],
    "generate": ["a red fox", "--model", "runs/pretrain", "--out", "drawn.png"],
    "edit": ["a.png", "make it blue", "--model", "runs/sft", "--out", "edited.png"],
    "ask": ["a.png", "what is it?", "--model", "runs/sft"],
    "caption": ["a.png", "--model", "runs/pretrain"],
    "chat": ["--model", "runs/sft", "--out", "talk"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_work_in_bf16_and_say_where_it_is_slower(verb, has):
    save_picture(ShardDataset(SCENES)[0]["image"], Path("a.png"))
    result = CliRunner().invoke(app, [verb, *map(str, VERBS[verb]), "--precision", "bf16"], input="a fox\n")
    assert result.exit_code == 0, result.stderr
    assert (result.stderr.count("slower than 32 here: this cpu has no") == 1) == (not has)
    refused = CliRunner().invoke(app, [verb, *map(str, VERBS[verb]), "--precision", "bf17"])
    assert refused.exit_code == 2 and "'bf17' is not one of '32', 'bf16'" in refused.stderr


def test_a_pair_is_opened_in_one_precision():
    lm, codec = load_pair(Path("runs/sft"), None, "bf16")
    assert lm.model.dtype == torch.bfloat16
    assert codec.precision == codec.tokenizer.precision == codec.decoder.precision == "bf16"
    lm, codec = load_pair(Path("runs/sft"), None)
    assert (lm.model.dtype, codec.precision, codec.decoder.precision) == (torch.float32, "32", "32")


def test_scores_of_two_precisions_are_not_compared(tmp_path):
    settings = ReconstructionSettings(level="tiny", count=2)
    exact, rounded = (
        evaluate_reconstruction(load_model("runs/tokenizer", precision=p), replace(settings, precision=p))[0]
        for p in ("32", "bf16")
    )
    assert "precision" not in exact.protocol  # as it was when there was none
    assert rounded.protocol == {**exact.protocol, "precision": "bf16"}
    assert rounded.scores["psnr"] == pytest.approx(exact.scores["psnr"], abs=0.1)
    exact.save(tmp_path / "a")
    rounded.save(tmp_path / "b")
    *_, warnings = compare_scores([tmp_path / "a", tmp_path / "b"])
    assert len(warnings) == 1 and "differ in precision and must not be compared" in warnings[0]


def test_the_command_evaluates_in_bf16(tmp_path):
    arguments = ["evaluate", "answers", "runs/sft", "level=tiny", "count=4", "precision=bf16", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert Scores.load(tmp_path).protocol["precision"] == "bf16"
    Path("adapter.py").write_text("def make():\n    return None\n")
    refused = CliRunner().invoke(app, ["evaluate", "answers", "adapter.py:make", *arguments[3:]])
    assert refused.exit_code == 2 and "precision=bf16 is for runs" in refused.stderr


def test_a_precision_may_be_written_as_a_number():
    assert load_config(AnswersSettings, None, ["precision=32"]).precision == "32"
    assert load_config(AnswersSettings, None, ["precision=bf16"]).precision == "bf16"
    with pytest.raises(ValueError, match="precision must be one of '32', 'bf16', not 16"):
        load_config(AnswersSettings, None, ["precision=16"])


def test_a_manifest_with_another_precision_is_no_trap(tmp_path):
    """It may come from anybody."""
    manifest = json.loads(Path("ids16/manifest.json").read_text())
    for precision, said in ((3, "'tokenizer' is not what a manifest holds"), ("fp8", "must be 32 or bf16")):
        manifest["tokenizer"]["precision"] = precision
        folder = tmp_path / str(precision)
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=said):
            verify_shards(SCENES, RUN, folder)
