"""Runs of ddt train-renderer: stopped and resumed, drawing in a codec, taught prefixes, with features of networks."""

import pytest
import torch
from PIL import Image
from tiny_runs import cut, same, train, weights

from ddt_apps.evaluation.models import load_model
from ddt_apps.evaluation.steps import ways_to_draw
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes
from ddt_apps.train import renderer as train_renderer
from ddt_tokenizer.codec import Codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some scenes and a tokenizer run."""
    folder = tmp_path_factory.mktemp("renderer_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_scenes(folder / "sc", 12, level="tiny")
        train("tokenizer", "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def ids(folder):
    return Codec.from_pretrained(folder / "runs" / "tokenizer").encode(torch.rand(2, 3, 32, 32) * 2 - 1)


@pytest.mark.parametrize("settings", [[], ["training.prefix_share=0.5", "perceptual=judge"]])
def test_an_interrupted_renderer_equals_an_uninterrupted_one(settings):
    name = f"r{len(settings)}"
    whole = train("renderer", f"{name}-whole", *settings)
    cut("renderer", f"{name}-cut", *settings)
    again = train("renderer", f"{name}-cut", *settings)
    assert same(weights(whole, "renderer"), weights(again, "renderer"))
    assert (whole / "metrics.csv").read_text() == (again / "metrics.csv").read_text()
    assert Image.open(whole / "samples" / "00000004.png").size == (2 * 32, (5 if settings else 3) * 32)
    assert "adversarial" in read_metrics(whole / "metrics.csv")


def test_what_is_perceptual_can_be_chosen_and_prefixes_must_be_some():
    runs = [train("renderer", f"by-{kind}", f"perceptual={kind}") for kind in ("edges", "judge")]
    first = [read_metrics(run / "metrics.csv")["perceptual"][1][0] for run in runs]
    assert first[0] != first[1]
    with pytest.raises(ValueError, match=r"training.prefix_share \(0.1\) of batch_size \(4\) is no picture"):
        train("renderer", "none", "training.prefix_share=0.1")


def test_a_codec_draws_whole_ids_with_its_renderer_and_parts_with_its_decoder(ids):
    run = train("renderer", "r")
    plain, codec = (Codec.from_pretrained("runs/tokenizer", renderer=renderer) for renderer in (None, run))
    assert torch.equal(codec.decode(ids), codec.renderer.decode(ids))
    assert not torch.equal(codec.decode(ids), plain.decode(ids))
    assert torch.equal(codec.decode(ids, keep_tokens=2), plain.decode(ids, keep_tokens=2))
    assert torch.equal(codec.decode(ids, num_steps=2), plain.decode(ids, num_steps=2))
    assert torch.equal(load_model(str(run)).decode(ids), codec.decode(ids))  # what `ddt evaluate` measures


def test_a_renderer_that_was_taught_prefixes_draws_previews_too(ids):
    run = train("renderer", "previews", "training.prefix_share=0.5")
    codec = Codec.from_pretrained("runs/tokenizer", renderer=run)
    few = codec.decode(ids, keep_tokens=2)
    assert torch.equal(few, codec.renderer.decode(ids, 2)) and not torch.equal(few, codec.decode(ids))
    assert torch.equal(codec.decode(ids, keep_tokens=0), codec.decoder.decode(ids, 1, keep_tokens=0))  # not taught
    assert torch.equal(codec.decode(ids, keep_tokens=2, num_steps=1), codec.decoder.decode(ids, 1, keep_tokens=2))
    ways = ways_to_draw(codec, torch.zeros(2, 3, 32, 32), ids)
    assert torch.equal(ways["renderer"](slice(0, 2)), codec.renderer.decode(ids))


def test_features_that_are_not_installed_are_asked_for(monkeypatch):
    monkeypatch.setattr(train_renderer, "lite0_installed", lambda: False)
    with pytest.raises(ValueError, match=r"perceptual=lite0 needs .*pip install"):
        train("renderer", "lite", "perceptual=lite0")
