"""Configurations of the full size take two steps with all sizes divided down: one process, two by DDP, two by FSDP2."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_ranks import free_port, of_torchrun, ran, trained
from transformers import LlamaConfig, LlamaForCausalLM

from ddt_apps.run.config import load_config
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes
from ddt_apps.train.examples import text_lines
from ddt_apps.train.settings import Pretrain, TrainTokenizer
from ddt_data import ShardWriter
from ddt_llm import train_text_tokenizer

SIZES = [f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")]
CODEC = [*SIZES, "data=sc", "vae=vae", "held_out=2", "codec.image_size=32", "codec.quantizer.codebook_size=64"]
CODEC += ["training.optimizer.steps=2"]
SELFTOK = ["codec.schedule=[3,2,1,1,1]", "codec.encoder.image_width=8", "codec.encoder.image_heads=2"]
LLAMA = ["data=ids", "backbone=llama", "row_length=64", "optimizer.steps=2", "optimizer.new_rows_steps=1"]
SHORT = ["batch_size=4", "accumulate=2", "workers=0", "tensorboard=false", "device=cpu", "precision=32-true"]
DIVIDED = {
    "imagenet/ddt-480": (TrainTokenizer, "tokenizer", [*CODEC, "codec.schedule=[8]"]),
    "imagenet/selftok-512": (TrainTokenizer, "tokenizer", [*CODEC, *SELFTOK]),
    "llama3-8b/pretrain": (Pretrain, "pretrain", LLAMA),
}
WAYS = ("one", "ddp", "fsdp2")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Runs on pictures, in the latents of an autoencoder, and of a LLaMA whose queries share keys, on ids."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("full_size")
    os.chdir(folder)
    make_scenes(Path("sc"), 12, level="tiny")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    AutoencoderKL(latent_channels=16, block_out_channels=[8] * 4, norm_num_groups=2, **blocks).save_pretrained("vae")
    generator, identity = np.random.default_rng(0), {"fingerprint": "0" * 16, "codebook_size": 64, "num_tokens": 8}
    with ShardWriter("ids", source="random", tokenizer=identity) as writer:
        for i in range(24):
            writer.write({"key": f"{i}", "text": "a red fox", "ids": generator.integers(64, size=8)})
    words = train_text_tokenizer(text_lines("prose"), 400)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 128}
    shape = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(words))
    LlamaForCausalLM(shape).save_pretrained("llama")
    words.save_pretrained("llama")
    runs = {way: [] for way in WAYS}
    for way in WAYS:
        for config, (settings, module, sizes) in DIVIDED.items():
            own = [*SHORT, *sizes, f"name={config.split('/')[1]}-{way}", *([f"strategy={way}"] if way != "one" else [])]
            runs[way].append((module, load_config(settings, config, own), free_port()))
    trained(*runs["one"])
    codes, said = ran(of_torchrun(2), trained, *runs["ddp"], *runs["fsdp2"])
    os.chdir(before)
    assert codes == [0, 0], said
    return folder / "runs"


@pytest.mark.parametrize("config", DIVIDED)
def test_two_steps_divided_down(here, config):
    name = config.split("/")[1]
    one, ddp, fsdp2 = (read_metrics(here / f"{name}-{way}" / "metrics.csv") for way in WAYS)
    assert one["loss"][0] == [2]
    for several in (ddp, fsdp2):
        assert several["loss"][1] == pytest.approx(one["loss"][1], rel=1e-5)
