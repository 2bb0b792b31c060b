"""The whole chain, as a user runs it, at toy size: every verb, every refusal, and what a kill leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.evaluation import Scores
from ddt_apps.models import load_pair
from ddt_apps.run.config import load_config
from ddt_apps.train.settings import TrainTokenizer
from ddt_apps.train.tokenizer import train
from ddt_apps.use.chat import Chat

SMALL = [
    "scenes=60",
    "held_out=12",
    "tokenizer.batch_size=8",
    "tokenizer.codec.encoder.width=32",
    "tokenizer.codec.encoder.depth=1",
    "tokenizer.codec.encoder.num_heads=2",
    "tokenizer.codec.network.width=32",
    "tokenizer.codec.network.depth=1",
    "tokenizer.codec.network.num_heads=2",
    "tokenizer.training.optimizer.steps=8",
    "tokenizer.training.continuous_steps=3",
    "pretrain.llama.width=32",
    "pretrain.llama.depth=1",
    "pretrain.llama.num_heads=2",
    "pretrain.batch_size=8",
    "pretrain.optimizer.steps=6",
    "sft.batch_size=8",
    "sft.optimizer.steps=6",
]


def ddt(*arguments):
    """Run the command; returns its exit code and what it printed, errors last."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exit_code not in (0, 2):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished demo run in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert ddt("demo", *SMALL)[0] == 0
        yield folder / "runs" / "demo"
    finally:
        os.chdir(before)


@pytest.fixture
def here(demo, monkeypatch):
    monkeypatch.chdir(demo.parent.parent)
    return demo


def test_demo_leaves_a_report_and_all_figures(here):
    figures = json.loads((here / "metrics.json").read_text())
    assert figures["held_out_scenes"] == 12 and set(figures["seconds"]) >= {"tokenize", "measure"}
    reconstruction, language = figures["reconstruction"], figures["language"]
    assert len(reconstruction["controls"]["psnr_from_coarsest"]) == 5
    assert {"codebook_usage", "codes_per_position", "psnr", "psnr_standard_error"} <= set(reconstruction["scores"])
    assert {"eight_steps", "mean_picture"} <= set(reconstruction["controls"])
    assert set(language["controls"]) == {"another_caption", "no_caption", "unigrams", "untrained"}
    assert {"background_as_asked", "overall", "standard_error"} <= set(figures["scenes"]["scores"])
    assert {"copy_input", "tokenizer"} <= set(figures["edits"]["controls"])
    assert {"frequent_answer", "another_picture"} <= set(figures["answers"]["controls"])
    for name in ("reconstruction", "order", "language", "scenes", "edits", "answers", "captions"):
        assert Scores.load(here / "evaluation" / name).content == figures[name]
        assert figures[name]["protocol_id"] in (here / "report.html").read_text()
    page = (here / "report.html").read_text()
    assert '""' not in "".join(re.findall(r'alt="[^"]*"', page))
    assert (
        page.count("<img") > 40 and "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page
    )


def test_the_commands_that_a_report_names_measure_the_same_again(here, tmp_path):
    page = (here / "report.html").read_text()
    commands = dict(re.findall(r"<td[^>]*>(ddt evaluate (\w+) [^<]*)</td>", page)[i][::-1] for i in range(7))
    assert len(commands) == 7
    for name in ("reconstruction", "order", "captions"):
        assert ddt(*commands[name].split()[1:], "--out", tmp_path / name)[0] == 0
        again, before = Scores.load(tmp_path / name), Scores.load(here / "evaluation" / name)
        assert (again.protocol_id, again.scores) == (before.protocol_id, before.scores)


def test_a_finished_demo_is_not_done_again(here):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    code, said = ddt("demo", *SMALL)
    assert code == 0 and "finished before" in said
    assert before == {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}


def test_other_settings_in_the_same_folder_are_refused(here):
    code, said = ddt("demo", *SMALL, "scenes=61")
    assert code == 2 and "scenes" in said and "name=" in said


def test_using_verbs_write_pictures_and_answers(here, tmp_path):
    picture = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    for verb in (
        ["reconstruct", picture, "--tokenizer", here / "tokenizer"],
        ["generate", "a red star on a black background", "--model", here / "pretrain", "--guidance", "2"],
        ["edit", picture, "make the star blue", "--model", here / "sft"],
    ):
        out = tmp_path / f"{verb[0]}.png"
        assert ddt(*verb, "--out", out)[0] == 0
        assert Image.open(out).size[0] >= 32
    assert ddt("ask", picture, "what is this?", "--model", here / "sft")[0] == 0
    assert ddt("caption", picture, "--model", here / "pretrain")[0] == 0
    code, said = ddt("ask", picture, "what is this?", "--model", here / "pretrain")
    assert code == 2 and "ddt sft" in said


def test_a_picture_is_finished_from_a_sketch(here, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "sketch.png")
    model, out = here / "pretrain", tmp_path / "finished.png"
    arguments = ["generate", "a red star", "--model", model, "--sketch", tmp_path / "sketch.png", "--out", out]
    assert ddt(*arguments, "--keep", "4")[0] == 0 and Image.open(out).size[0] >= 32
    code, said = ddt(*arguments, "--keep", "16")
    assert code == 2 and "keep_tokens" in said
    code, said = ddt("generate", "a red star", "--model", model, "--out", out, "--keep", "4")
    assert code == 2 and said.startswith("error: --keep 4 ") and "--sketch" in said


def test_a_chat_through_a_pipe_answers_and_goes_on_after_mistakes(here, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    said = f"a red star\nwhat is in {tmp_path / 'red.png'}?\nnowhere.png\n" + "a bell\n" * 3 + "/new\nhello\n/quit\nno"
    result = CliRunner().invoke(
        app, ["chat", "--model", str(here / "sft"), "--out", str(tmp_path / "drawn")], input=said
    )
    assert result.exit_code == 0 and "error: picture 'nowhere.png' does not exist" in result.output
    drawn = sorted((tmp_path / "drawn").glob("*.png"))
    assert [str(file) in result.output for file in drawn] == [True] * len(drawn)
    code, said = ddt("chat", "--model", here / "pretrain")
    assert code == 2 and "ddt sft" in said


def test_a_chat_remembers_as_much_as_fits(here, tmp_path):
    lm, codec = load_pair(here / "sft", None)
    lm.model.config.max_position_embeddings = 200
    settings = {"output": "image", "max_text_tokens": 8, "preview_every": 4}
    chat = Chat(lm, codec, tmp_path, settings, thumbnails=True)
    shown = "".join(chat.answer("a red star"))
    files = sorted(tmp_path.glob("*.png"))
    assert files and shown.count("\x1b[16A") == 3 * len(files) and all(str(file) in shown for file in files)
    ((question, answer),) = chat.history
    assert question == ["a red star"] and sum(not isinstance(part, str) for part in answer) == len(files)
    list(chat.answer(f"and {files[0]} ?"))
    assert len(chat.history) == 2 and chat.history[1][0][1].shape == (16,)
    for _ in range(6):
        list(chat.answer("a red star on a black background"))
    assert 2 < len(chat.history) < 8


def test_a_folder_of_photographs_goes_through_the_same_commands(here, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        array = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(array).save(photos / f"{i}.jpg")
        (photos / f"{i}.txt").write_text(f"photograph number {i}")
    assert ddt("data", "pack", photos, "--out", tmp_path / "shards", "--image-size", "32")[0] == 0
    ids = ["tokenize", tmp_path / "shards", "--tokenizer", here / "tokenizer", "--out", tmp_path / "ids"]
    assert ddt(*ids)[0] == 0
    small = [o.removeprefix("pretrain.") for o in SMALL if o.startswith("pretrain.")]
    name = f"photos-{tmp_path.name}"
    assert ddt("pretrain", "tiny/pretrain", f"data={tmp_path / 'ids'}", f"name={name}", *small)[0] == 0
    assert (here.parent / name / "model" / "ddt.json").is_file()
    code, said = ddt(*ids)  # the id shards are there already
    assert code == 0 and "holds 12 samples" in said


def test_what_a_user_can_mend_is_one_line(here, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no picture")
    (broken / "a.txt").write_text("a caption")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    Image.new("RGB", (40, 40)).save(lonely / "a.png")
    (lonely / "a.txt").write_text("there")
    (lonely / "b.txt").write_text("no picture beside me")
    out = tmp_path / "out"
    data = f"data={here / 'data' / 'train'}"
    for arguments, named in (
        (["data", "pack", tmp_path / "nowhere", "--out", out], "nowhere"),
        (["data", "pack", tmp_path / "empty", "--out", out], "empty"),
        (["data", "pack", broken, "--out", out], "a.jpg"),
        (["data", "pack", lonely, "--out", out, "--strict"], "b.txt"),
        (["train-tokenizer", "tiny/tokenizer", data, "name=x", "codec.encoder.dept=2"], "depth"),
        (["train-tokenizer", "tiny/tokeniser", data], "tiny/tokenizer"),
        (["train-tokenizer", "tiny/tokenizer", data, "name=x", "codec.encoder.num_tokens=8"], "num_tokens"),
        (["tokenize", here / "data" / "train", "--tokenizer", tmp_path / "nowhere", "--out", out], "nowhere"),
        (["pretrain", "tiny/pretrain", data, "name=x"], "ddt tokenize"),
        (["sft", "tiny/sft", data, f"model={here / 'pretrain'}", "name=x"], "ids"),
        (["generate", "a star", "--model", tmp_path / "nowhere", "--out", tmp_path / "a.png"], "nowhere"),
        (["generate", "a star", "--model", here / "pretrain", "--out", tmp_path / "a.xyz"], ".png"),
        (["tokenize", here / "data" / "train-ids", "--tokenizer", here / "tokenizer", "--out", out], "no pictures"),
        (["train-tokenizer", "tiny/tokenizer", data, "name=x", "device=abacus"], "abacus"),
        (["demo", "name=x", "tokenizer.bath_size=3"], "batch_size"),
        (["demo", "name=x", "held_out=2"], "held_out"),
    ):
        code, said = ddt(*arguments)
        assert code == 2 and named in said, (arguments, said)
        assert said.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in said
        assert not out.exists() and not (here.parent / "x").exists()


def test_how_many_processes_load_may_change(here):
    assert ddt("demo", *SMALL)[0] == 0
    small = [o.removeprefix("tokenizer.") for o in SMALL if o.startswith("tokenizer.")]
    data = f"data={here.relative_to(here.parent.parent) / 'data' / 'train'}"
    config = load_config(TrainTokenizer, "tiny/tokenizer", [data, "name=tokenizer", "workers=1", "held_out=0", *small])
    assert train(config, here) == here / "tokenizer"


def test_id_shards_of_another_tokenizer_are_refused(here, tmp_path):
    ids = tmp_path / "ids"
    code, _ = ddt("tokenize", here / "data" / "train", "--tokenizer", here / "tokenizer", "--out", ids)
    assert code == 0
    manifest = json.loads((ids / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 16
    (ids / "manifest.json").write_text(json.dumps(manifest))
    code, said = ddt("sft", "tiny/sft", f"data={ids}", f"model={here / 'pretrain'}", "name=other")
    assert code == 2 and "0000" in said and not (here.parent / "other").exists()


def test_a_killed_demo_continues_to_the_same_result(here, tmp_path):
    """SIGKILL in the middle of each training stage; the models must equal those of the run that nobody stopped."""
    command = [sys.executable, "-m", "ddt_apps", "demo", *SMALL]
    for stage in ("tokenizer", "pretrain", "sft"):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        folder = tmp_path / "runs" / "demo" / stage
        while not (folder / "config.yaml").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "done.json").exists()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    again = tmp_path / "runs" / "demo"
    assert (again / "report.html").is_file()
    for weights in ("tokenizer/tokenizer", "tokenizer/decoder", "pretrain/model", "sft/model"):
        name = f"{weights}/model.safetensors"
        assert (again / name).read_bytes() == (here / name).read_bytes(), name
