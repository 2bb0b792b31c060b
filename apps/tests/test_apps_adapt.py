"""Runs of ddt adapt: resumed, with adapters, and what of before they keep."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import cut, make_all, same, train, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from ddt_apps.models import load_language_model
from ddt_apps.run.fitting import RunRecorder
from ddt_llm import DenoiseConfig, Denoising

STAGES = {
    "mask": ["adapt.whole_share=0.5", "adapt.in_order_steps=2"],
    "metric": ["denoise.path=metric", "denoise.text_block=0"],
    "adapters": ["lora.rank=2"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ids, and a finished run of pretraining."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all("tokenizer", "pretrain")
    return folder


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 0.0)


@pytest.mark.parametrize("kind", STAGES)
def test_a_stopped_adaptation_goes_on_as_if_it_had_not_been(here, kind):
    train("adapt", "whole", *STAGES[kind])
    cut("adapt", "stopped", *STAGES[kind], step=3)
    train("adapt", "stopped", *STAGES[kind])
    assert same(weights("runs/whole", "adapt"), weights("runs/stopped", "adapt"))
    assert Path("runs/whole/metrics.csv").read_text() == Path("runs/stopped/metrics.csv").read_text()


def test_an_adapted_run_is_a_plain_folder_that_draws_both_ways(here):
    train("adapt", "adapt")
    lm, before = load_language_model("runs/adapt"), load_language_model("runs/pretrain")
    assert DenoiseConfig.from_config(lm.model.config).blocks == (1, 1, 2)
    for how in (None, Denoising(steps=3)):
        assert lm.generate("a red fox", denoising=how).ids.shape == (1, 4)
    plain = AutoModelForCausalLM.from_pretrained("runs/adapt/model").eval()
    tokens = torch.tensor([lm.sequences.prompt(["a red fox"], lm.template)])
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens).logits, lm.model.eval()(tokens).logits)
    assert AutoTokenizer.from_pretrained("runs/adapt/model").convert_tokens_to_ids("<boi>") == before.vocabulary.boi
    assert lm.vocabulary.size == before.vocabulary.size + 1
