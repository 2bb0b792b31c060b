"""Runs of ddt pretrain and ddt sft: packed, resumed, with adapters, guarded, from other backbones; shipped settings."""

import csv
import json
import os
import random
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from ddt_apps.models import load_language_model
from ddt_apps.run.carrying_out import RUNS
from ddt_apps.run.config import load_config
from ddt_apps.run.fitting import RunRecorder
from ddt_apps.shards.make import make_scenes
from ddt_apps.train import pretrain, sft
from ddt_apps.train.examples import (
    PIECE,
    conversation,
    instruction_example,
    pretraining_example,
    split_lines,
    text_lines,
)
from ddt_apps.train.pretrain import build_model
from ddt_apps.train.settings import Pretrain, Tune
from ddt_data import ShardDataset, ShardWriter
from ddt_llm import VisualVocabulary, collate_packed, expand_vocabulary, pack, train_text_tokenizer
from ddt_llm.optimizer import build_optimizer
from ddt_llm.training import LanguageModelTraining

TOY = [
    "data=ids",
    "optimizer.steps=6",
    "optimizer.warmup_steps=2",
    "batch_size=8",
    "watch_every=3",
    "loggers=[]",
]
SMALL = ["llama.width=32", "llama.depth=1", "llama.num_heads=2", "text_vocabulary=400"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Id shards of some scenes, K = 64 and V = 512, random; and a pretrained run `first`."""
    folder = tmp_path_factory.mktemp("language_runs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_scenes(folder / "scenes", 100, level="tiny")
        scenes, generator = ShardDataset("scenes"), np.random.default_rng(0)
        identity = {"fingerprint": "0" * 16, "codebook_size": 512, "num_tokens": 64}
        with ShardWriter(folder / "ids", source="random", tokenizer=identity) as writer:
            for i in range(len(scenes)):
                sample = {name: value for name, value in scenes[i].items() if name not in ("image", "target")}
                ids = {"ids": generator.integers(512, size=64), "target_ids": generator.integers(512, size=64)}
                writer.write(sample | ids)
        pretrain.train(load_config(Pretrain, "tiny/pretrain", [*TOY, *SMALL, "name=first"]))
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_the_shipped_small_settings_fill_packed_rows(here):
    """At least 95 % of the tokens of a batch are no padding, in pretraining and in tuning on scenes."""
    dataset = ShardDataset("ids")
    samples = [dataset[i] for i in range(len(dataset))]
    settings = load_config(Pretrain, "small/pretrain", ["data=ids"])
    lm = build_model(settings, dataset, text_lines("prose"))
    tuning = load_config(Tune, "small/sft", ["data=ids", "model=first"])
    for config, make in (
        (settings, pretraining_example(lm.sequences, settings.tasks, text_lines("prose"))),
        (tuning, instruction_example(lm.sequences, tuning.tasks)),
    ):
        rng, used, room = random.Random(0), 0, 0
        for _ in range(8):
            examples = [make(rng.choice(samples), rng) for _ in range(config.batch_size)]
            used += sum(len(example.input_ids) for example in examples)
            room += collate_packed(examples, lm.sequences.pad, config.row_length)["input_ids"].numel()
        assert used / room >= 0.95
    assert 3e6 < sum(weight.numel() for weight in lm.model.parameters()) < 10e6


def test_a_packed_run_with_gathered_gradients_resumes_to_the_same_weights(here, monkeypatch):
    overrides = [*TOY, *SMALL, "row_length=200", "accumulate=2", "activation_checkpointing=true", "retention_limit=99"]
    whole = pretrain.train(load_config(Pretrain, "tiny/pretrain", [*overrides, "name=whole"]))
    original = LanguageModelTraining.training_step

    def stopping(self, batch, batch_idx):
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    config = load_config(Pretrain, "tiny/pretrain", [*overrides, "name=resumed"])
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelTraining, "training_step", stopping)
        with pytest.raises(SystemExit):
            pretrain.train(config)
    signal.signal(signal.SIGTERM, handler)
    resumed = pretrain.train(config)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())
    for file in ("retention.json", "metrics.csv"):
        assert (resumed / file).read_text() == (whole / file).read_text()
    rows = list(csv.DictReader((whole / "throughput.csv").open()))
    assert [row["step"] for row in rows] == ["3", "6"]
    assert all(0 < float(row["useful_tokens_per_second"]) <= float(row["tokens_per_second"]) for row in rows)


def test_another_backbone_is_one_line_and_adapters_leave_its_text_alone(here, tmp_path):
    tokenizer = train_text_tokenizer(text_lines("prose"), 500)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**small, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = pretrain.train(load_config(Pretrain, "tiny/pretrain", [*TOY, "name=swapped", f"backbone={tmp_path}"]))
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    text = VisualVocabulary.from_config(model.config).text_size
    assert text == len(tokenizer) and model.config.hidden_size == 32

    tuning = ["model=runs/swapped", "name=adapted", "lora.rank=2", "lora.alpha=4", "optimizer.optimizer=adamw"]
    tuned = weights(sft.train(load_config(Tune, "tiny/sft", [*TOY, *tuning])))
    before = weights(run)
    assert tuned.keys() == before.keys()
    assert torch.equal(tuned["model.embed_tokens.weight"][:text], before["model.embed_tokens.weight"][:text])
    assert not torch.equal(tuned["model.embed_tokens.weight"][text:], before["model.embed_tokens.weight"][text:])
    assert not torch.equal(*(state["model.layers.0.mlp.up_proj.weight"] for state in (tuned, before)))
    assert torch.equal(*(state["model.norm.weight"] for state in (tuned, before)))
    assert load_language_model("runs/adapted").template == "instruction"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes (extra qlora) is not installed")
def test_a_run_in_four_bits_goes_on_exactly_and_leaves_a_plain_model(here, monkeypatch):
    tuning = [*TOY, "model=runs/first", "lora.rank=2", "lora.bits=4", "optimizer.optimizer=adamw"]
    whole = sft.train(load_config(Tune, "tiny/sft", [*tuning, "name=four"]))
    config = load_config(Tune, "tiny/sft", [*tuning, "name=four-cut"])
    monkeypatch.setattr(RunRecorder, "save_every_seconds", 0.0)
    with monkeypatch.context() as patch:
        step = LanguageModelTraining.training_step

        def stopping(self, *batch):
            if self.global_step == 3:
                raise OSError("the power is gone")
            return step(self, *batch)

        patch.setattr(LanguageModelTraining, "training_step", stopping)
        with pytest.raises(OSError, match="the power is gone"):
            sft.train(config)
    saved = torch.load("runs/four-cut/last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name, tensor in saved.items() if tensor.dtype == torch.uint8]
    cut = sft.train(config)
    tuned, before = weights(whole), weights(Path("runs/first"))
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in weights(cut).items())
    assert tuned.keys() == before.keys()
    text = load_language_model("runs/four").vocabulary.text_size
    old, new = (state["model.embed_tokens.weight"] for state in (before, tuned))
    assert torch.equal(new[:text], old[:text]) and not torch.equal(new[text:], old[text:])


@pytest.fixture
def long_ids(here, tmp_path):
    """Id shards of K = 8 and V = 16 in which two captions and an instruction are as long as novels."""
    generator = np.random.default_rng(1)
    identity = {"fingerprint": "1" * 16, "codebook_size": 16, "num_tokens": 8}
    with ShardWriter(tmp_path / "long", source="random", tokenizer=identity) as writer:
        for i in range(12):
            words = "a red fox " * (500 if i in (3, 8) else 1)
            meta = {"edit": {"kind": "colour", "instruction": "make it blue " * (400 if i == 5 else 1)}}
            ids = {"ids": generator.integers(16, size=8), "target_ids": generator.integers(16, size=8)}
            writer.write({"key": f"sample-{i:02d}", "text": words, "meta": meta, **ids})
    return tmp_path / "long"


@pytest.fixture
def other_backbone(tmp_path):
    """A function that saves a tiny random model with a tokenizer and returns its folder."""

    def save(model_class, config_class, **config):
        tokenizer = train_text_tokenizer(text_lines("prose"), 400)
        model = model_class(config_class(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **config))
        model.save_pretrained(tmp_path / "backbone")
        tokenizer.save_pretrained(tmp_path / "backbone")
        return tmp_path / "backbone"

    return save


GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize("limit", ["row_length=48", "positions"])
def test_captions_that_are_too_long_are_cut_and_named_before_the_first_step(long_ids, other_backbone, capsys, limit):
    folder = other_backbone(GPT2LMHeadModel, GPT2Config, **GPT2, n_positions=4096 if "=" in limit else 48)
    overrides = [*TOY, f"data={long_ids}", *([limit] if "=" in limit else []), f"name=cut-{limit[:3]}"]
    run = pretrain.train(load_config(Pretrain, "tiny/pretrain", [*overrides, f"backbone={folder}"]))
    said = capsys.readouterr().err
    assert "2 of 12 samples have texts longer than 48 tokens allow: sample-03, sample-08;" in said

    tuning = [*TOY, f"data={long_ids}", f"model={run}", f"name=tuned-{limit[:3]}"]
    with pytest.raises(ValueError, match=r"takes \d+ tokens .* 24 are the most: raise row_length"):  # two pictures
        sft.train(load_config(Tune, "tiny/sft", [*tuning, "row_length=24"]))
    assert not (RUNS / f"tuned-{limit[:3]}" / "metrics.csv").exists()
    if "=" in limit:
        tuned = sft.train(load_config(Tune, "tiny/sft", [*tuning, "row_length=40"]))
        assert "3 of 12 samples have texts longer than 40 tokens allow: sample-03, sample-05, sample-08;" in (
            capsys.readouterr().err
        )
        assert (tuned / "model" / "ddt.json").is_file()


def test_samples_that_fit_are_not_mentioned(here, capsys):
    pretrain.train(load_config(Pretrain, "tiny/pretrain", [*TOY, *SMALL, "name=fits", "row_length=300"]))
    assert "samples have texts" not in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["row_length=10", "llama.max_positions=10"])
def test_where_no_image_fits_the_length_that_it_needs_is_named(long_ids, setting):
    config = load_config(Pretrain, "tiny/pretrain", [*TOY, *SMALL, f"data={long_ids}", "name=small", setting])
    with pytest.raises(
        ValueError, match=r"an image and a word take 13 tokens, 10 are the most: .*row_length.*positions"
    ):
        pretrain.train(config)


def test_a_backbone_that_cannot_be_packed_is_refused_before_the_first_step(long_ids, other_backbone):
    folder = other_backbone(BloomForCausalLM, BloomConfig, hidden_size=16, n_layer=1, n_head=2)
    overrides = [*TOY, f"data={long_ids}", f"backbone={folder}"]
    with pytest.raises(ValueError, match=r"BloomForCausalLM cannot train on packed rows.*row_length=0"):
        pretrain.train(load_config(Pretrain, "tiny/pretrain", [*overrides, "name=packed", "row_length=64"]))
    assert not (RUNS / "packed" / "metrics.csv").exists()
    # Without rows it trains, without any limit of positions, and draws.
    run = pretrain.train(load_config(Pretrain, "tiny/pretrain", [*overrides, "name=unpacked", "batch_size=2"]))
    lm = load_language_model(run)
    assert lm.sequences.longest is None and lm.generate("a red fox " * 500).ids.shape == (1, 8)


def test_a_run_that_loses_its_text_is_stopped(here):
    first = [*TOY, "model=runs/first", "name=lost", "retention_limit=1.01", "optimizer.lr=0.5", "tasks.ask=0"]
    with pytest.raises(ValueError, match="perplexity of held-out text rose"):
        sft.train(load_config(Tune, "tiny/sft", first))
    assert not (here / "runs" / "lost" / "model").exists()
    told = json.loads((here / "runs" / "lost" / "retention.json").read_text())
    assert [row["step"] for row in told["measured"]] == [0, 3]
    with pytest.raises(ValueError, match="retention_limit needs text"):
        sft.train(
            load_config(Tune, "tiny/sft", [*TOY, "model=runs/first", "name=no-text", "retention_limit=2", "text=''"])
        )


def test_positions_that_hold_no_example_are_refused_before_the_first_step(here):
    """A picture alone takes 66 tokens, a word and two marks three more; longer captions are cut, and told."""
    for positions in (8, 66, 68):
        config = load_config(
            Pretrain, "tiny/pretrain", [*TOY, *SMALL, "name=short", f"llama.max_positions={positions}"]
        )
        with pytest.raises(ValueError, match=f"{positions} are the most"):
            pretrain.train(config)
    assert not (here / "runs" / "short").exists()


def test_a_talk_shows_or_draws_its_picture_once(here):
    sample = ShardDataset("ids")[0]
    kinds = set()
    for seed in range(20):
        turns = conversation(sample, random.Random(seed))
        drawn = not any(isinstance(part, torch.Tensor) for part in turns[0][0])
        shown = [part for question, _ in turns for part in question if isinstance(part, torch.Tensor)]
        assert len(shown) == (not drawn) and torch.equal(turns[-1][1][0], torch.from_numpy(sample["target_ids"]))
        assert 2 <= len(turns) <= 4
        kinds.add(drawn)
    assert kinds == {True, False}
    assert conversation({"ids": sample["ids"]}, random.Random(0)) == []


def test_long_texts_come_in_pieces_and_some_are_held_out():
    text = "word " * 1500 + "x" * 4100
    pieces = PIECE.findall(text)
    assert all(len(piece) <= 2001 for piece in pieces) and "".join(pieces).split() != []
    assert sum(len(piece.replace(" ", "")) for piece in pieces) >= len(text.replace(" ", "")) - 100
    trained, held_out = split_lines([str(i) for i in range(100)])
    assert len(held_out) == 5 and not set(trained) & set(held_out) and len(trained) == 95


def test_the_settings_of_the_full_run_build_on_the_meta_device():
    """Shapes of LLaMA-3-8B without its weights: rows of the paper, optimizer groups, rows of 4,096 tokens."""
    config = load_config(Pretrain, "llama3-8b/pretrain", ["data=ids"])
    load_config(Tune, "llama3-8b/sft", ["data=ids", "model=runs/first"])
    shape = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    tokenizer = train_text_tokenizer(text_lines("prose"), 500)
    model, _ = expand_vocabulary(model, tokenizer, codebook_size=65536, num_tokens=480, multiple=config.multiple)
    assert sum(weight.numel() for weight in model.parameters()) == 8_030_261_248 + 2 * (193_920 - 128_256) * 4096
    groups = build_optimizer(model, config.optimizer).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert config.row_length // (480 + 60) == 7 and pack([], config.row_length) == []
