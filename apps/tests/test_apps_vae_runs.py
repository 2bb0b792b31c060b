"""Runs of ddt train-vae: resumed, exported, used by a tokenizer."""

import os
import signal
from pathlib import Path

import pytest

from ddt_apps.run.config import load_config
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes
from ddt_apps.train import tokenizer as train_tokenizer
from ddt_apps.train import vae as train_vae
from ddt_apps.train.settings import TrainTokenizer, TrainVAE
from ddt_tokenizer.codec import Codec


def test_an_autoencoder_of_ours_goes_on_after_a_stop_and_serves_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scenes(Path("data"), 12, level="tiny")

    def own(name):
        settings = ["data=data", "image_size=32", "vae.width=8", "vae.depth=1", "held_out=2", "watch_every=2"]
        settings += ["training.optimizer.steps=6", "training.optimizer.warmup_steps=1", "precision=32-true"]
        return load_config(TrainVAE, "small/vae", [*settings, "batch_size=2", f"name={name}"])

    whole = train_vae.train(own("vae-whole"))

    def stopped(self, batch, index):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    handler, step = signal.signal(signal.SIGTERM, signal.SIG_DFL), train_vae.VAETraining.training_step
    with monkeypatch.context() as patch:
        patch.setattr(train_vae.VAETraining, "training_step", stopped)
        with pytest.raises(SystemExit):
            train_vae.train(own("vae-cut"))
    signal.signal(signal.SIGTERM, handler)
    again = train_vae.train(own("vae-cut"))
    for file in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json", "samples/00000006.png"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()
    assert read_metrics(again / "metrics.csv")["held_out_psnr"][1][-1] > 0
    sizes = [f"vae={again}/vae", "codec.encoder.patch_size=2", "codec.network.patch_size=2"]
    sizes += [
        f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")
    ]
    sizes += ["codec.quantizer.codebook_size=16", "training.continuous_steps=1", "training.optimizer.steps=2"]
    sizes += ["training.optimizer.warmup_steps=1", "data=data", "batch_size=4", "held_out=2", "name=on-ours"]
    codec = Codec.from_pretrained(train_tokenizer.train(load_config(TrainTokenizer, "tiny/tokenizer", sizes)))
    assert (codec.tokenizer.config.latents.channels, codec.tokenizer.config.latents.downscale) == (8, 4)
    with pytest.raises(ValueError, match=r"image_size \(30\) must be divisible by vae.downscale \(4\)"):
        load_config(TrainVAE, "small/vae", ["data=data", "image_size=30"])
