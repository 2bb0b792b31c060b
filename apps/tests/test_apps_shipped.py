"""The model that comes with the packages, through the commands, and how a model gets there."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from ddt_apps import models
from ddt_apps.cli.main import app
from ddt_apps.evaluation.heldout import held_out_scenes
from ddt_apps.evaluation.tokens import from_finest
from ddt_data import render
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import psnr, to_tensor

NAME = "ddt-small-64"
SHIP = Path(__file__).parents[1] / "scripts" / "ship.py"


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained(NAME)


def test_it_draws_held_out_scenes_from_coarse_to_fine(codec):
    scenes, config = held_out_scenes("standard", codec.image_size, 32, seed=5)
    images = to_tensor([render(s.scene, config) for s in scenes])
    ids = codec.encode(images)
    found = [float(psnr(codec.decode(ids, keep_tokens=n, num_steps=1), images).mean()) for n in (1, 8, 32, 64)]
    assert found == sorted(found) and found[-1] > 23
    assert float(psnr(from_finest(codec, ids, 32), images).mean()) < found[2] - 3


def test_both_wheels_say_the_same_of_it():
    parts = [
        importlib.import_module(f"{package}.shipped").WEIGHTS / NAME for package in ("ddt_tokenizer", "ddt_decoder")
    ]
    for name in ("README.md", "NOTICE"):
        texts = {(part / name).read_text() for part in parts}
        assert len(texts) == 1 and NAME in texts.pop()


def test_a_change_leaves_the_fine_ids_elsewhere_as_they_are(codec):
    """Of 20 px: the whole picture and its halves, 4 ids, one quarter, 3, and in it four blocks of 16 px, 12 ids."""
    scenes, config = held_out_scenes("standard", codec.image_size, 32, seed=6)
    images = to_tensor([render(s.scene, config) for s in scenes])
    changed = images.clone()
    changed[:, :, :20, :20] = changed[:, :, :20, :20].flip(3) * -1
    same = (codec.encode(images) == codec.encode(changed)).float()
    assert same[:, -1].mean() < 0.7  # the coarsest
    assert same.mean(0).sort().values[19:].min() > 0.9  # not 1, since latents see a little further than patches


def test_commands_know_it_by_name(codec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "teal").save("photo.png")
    for command in (
        "reconstruct photo.png --out again.png",
        "data scenes --out scenes --count 4",
        f"tokenize scenes --tokenizer {NAME} --out ids",
        f"evaluate reconstruction {NAME} count=4 --out scores",
    ):
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
    assert Image.open("again.png").width >= 64 and Path("scores/index.html").exists()
    assert json.loads(Path("ids/manifest.json").read_text())["tokenizer"]["fingerprint"] == codec.fingerprint


def test_a_language_model_of_its_ids_finds_it_from_anywhere(codec, tmp_path, monkeypatch):
    lm = SimpleNamespace(visual_fingerprint=codec.fingerprint, model=torch.nn.Identity())
    monkeypatch.setattr(models, "load_language_model", lambda run, precision: lm)
    assert models.load_pair(tmp_path / "runs" / "lm", None)[1].fingerprint == codec.fingerprint


def test_what_is_shipped_is_rounded_and_belongs_together(codec, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("ship", SHIP)
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    monkeypatch.setattr(ship, "PACKAGES", tmp_path)
    run = tmp_path / "run"
    with torch.no_grad():
        codec_of_a_run = Codec.from_pretrained(NAME)
        for weight in codec_of_a_run.tokenizer.parameters():
            weight.add_(1e-4)
    codec_of_a_run.decoder.tokenizer_fingerprint = codec_of_a_run.tokenizer.fingerprint()
    codec_of_a_run.save_pretrained(run)
    monkeypatch.setattr(ship.shutil, "copytree", lambda *_, **__: None)
    ship.ship_codec("mine", run)
    parts = [ship.folder(f"ddt-{part}", "mine", part) for part in ("tokenizer", "decoder")]
    for part in parts:
        kinds = {tensor.dtype for tensor in load_file(part / "model.safetensors").values()}
        assert kinds == {torch.bfloat16}
        assert json.loads((part / "config.json").read_text())["latents"]["vae"] == "mine/vae"
    both = tmp_path / "both"
    both.mkdir()
    for part in parts:
        part.rename(both / part.name)
    vae = f"{NAME}/vae"
    assert Codec.from_pretrained(both, vae=vae).fingerprint != Codec.from_pretrained(run).fingerprint
    with pytest.raises(SystemExit, match="train it on those"):
        ship.check(NAME, run, "0" * 16)
