"""Training on several sets by configuration alone: pictures for the tokenizer, ids for the language model."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ddt_apps.run.config import load_config
from ddt_apps.shards.latents import cache_latents
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import pictures, pretrain, renderer, sft
from ddt_apps.train import tokenizer as train_tokenizer
from ddt_apps.train.settings import Pretrain, TrainRenderer, TrainTokenizer, Tune
from ddt_data import Manifest, PackConfig, Record, ShardDataset, pack_records
from ddt_tokenizer.codec import Codec

TOY = [
    "codec.encoder.width=16",
    "codec.encoder.depth=1",
    "codec.encoder.num_heads=2",
    "codec.quantizer.codebook_size=32",
    "codec.network.width=16",
    "codec.network.depth=2",
    "codec.network.num_heads=2",
    "training.optimizer.steps=4",
    "training.optimizer.warmup_steps=2",
    "training.continuous_steps=1",
    "loggers=[]",
    "batch_size=10",
    "held_out=3",
]
LANGUAGE = ["batch_size=10", "optimizer.steps=2", "optimizer.warmup_steps=1"]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Scenes, and a set of cards of one colour each, smaller."""
    monkeypatch.chdir(tmp_path)
    make_scenes(tmp_path / "scenes", 30, level="tiny")
    records = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(buffer, "png")
        question = {"kind": "name", "question": "what is this?", "answer": "a card"}
        records.append(Record(str(number), buffer.getvalue(), text=f"card {number}", meta={"questions": [question]}))
    pack_records(records, tmp_path / "cards", PackConfig(image_size=32))
    return tmp_path


def test_the_whole_chain_trains_on_a_mixture(sets):
    config = load_config(TrainTokenizer, "tiny/tokenizer", ["data=scenes:0.6,cards:0.4", *TOY])
    run = train_tokenizer.train(config)
    assert Codec.from_pretrained(run).num_tokens == 16
    for name in ("scenes", "cards"):
        tokenize_shards(sets / name, run, sets / f"{name}-ids")
    ids = "data=scenes-ids:0.5,cards-ids:0.5"
    small = ["llama.width=16", "llama.depth=1", "llama.num_heads=2"]
    language = pretrain.train(load_config(Pretrain, "tiny/pretrain", [ids, *small, *LANGUAGE]))
    tuned = sft.train(load_config(Tune, "tiny/sft", [ids, f"model={language}", *LANGUAGE]))
    assert (tuned / "model" / "ddt.json").is_file()


def test_a_tokenizer_trains_on_a_mixture_of_latents(sets):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained("vae")
    make_scenes(sets / "large", 4)
    for name in ("scenes", "cards", "large"):
        cache_latents(sets / name, "vae", sets / f"{name}-latents")
    latents = ["codec.encoder.patch_size=2", "codec.network.patch_size=2"]
    data = "data=scenes-latents:0.6,cards-latents:0.4"
    config = load_config(train_tokenizer.TrainTokenizer, "tiny/tokenizer", [data, *TOY, *latents])
    assert Codec.from_pretrained(train_tokenizer.train(config)).tokenizer.config.latents.downscale == 4
    with pytest.raises(ValueError, match=r"large-latents' have 64 px, the tokenizer takes 32"):
        train_tokenizer.train(replace(config, name="other-size", data="scenes-latents,large-latents"))


def test_each_set_has_its_share_and_held_out_pictures_are_not_trained_on(sets, monkeypatch):
    fed = []
    monkeypatch.setattr(pictures, "pictures_of", lambda samples: fed.append(samples) or _blank(samples))
    config = load_config(TrainTokenizer, "tiny/tokenizer", ["data=scenes:0.6,cards:0.4", *TOY])
    train_tokenizer.train(config)
    samples = [sample for batch in fed[:4] for sample in batch]
    cards = [sample["text"] for sample in samples if sample["text"].startswith("card ")]
    assert len(samples) == 40 and 8 <= len(cards) <= 24
    assert not {"card 9", "card 10", "card 11"} & set(cards)  # the last three of the last set
    assert all(len(set(cards[at : at + 9])) == len(cards[at : at + 9]) for at in range(0, len(cards), 9))
    assert len(ShardDataset("cards")) == 12


def test_training_opens_its_shards_once(sets, monkeypatch):
    opened, read = [], Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda folder: opened.append(str(folder)) or read(folder))
    data = ["data=scenes:0.6,cards:0.4", "held_out=3"]
    run = train_tokenizer.train(load_config(TrainTokenizer, "tiny/tokenizer", [*data, *TOY]))
    assert opened == ["scenes", "cards"] * 2  # once for what the run remembers, once for its samples
    short = ["steps=2", "batch_size=4", "loggers=[]", f"tokenizer={run}"]
    renderer.train(load_config(TrainRenderer, "tiny/renderer", [*data, *short]))
    assert opened == ["scenes", "cards"] * 4


def _blank(samples):
    return torch.zeros(len(samples), 3, 32, 32)
