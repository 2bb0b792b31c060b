"""A tiny run of each verb that trains, and ways to stop one: what several tests of runs share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddt_apps.run.config import load_config
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import adapt, pretrain, renderer, rl, sft, tokenizer
from ddt_apps.train.settings import Adapt, Pretrain, Reinforce, TrainRenderer, TrainTokenizer, Tune
from ddt_data import pack_text
from ddt_decoder.renderer_training import RendererTraining
from ddt_llm.denoise_training import DenoiseTraining
from ddt_llm.grpo import GRPOTraining
from ddt_llm.training import LanguageModelTraining
from ddt_tokenizer.training import TokenizerTraining

ALL = ["batch_size=4", "watch_every=2", "loggers=[]", "precision=32-true"]
SIZES = [f"codec.{part}.{size}" for part in ("encoder", "network") for size in ("width=16", "depth=1", "num_heads=2")]
SCHEDULE = ["optimizer.steps=6", "optimizer.warmup_steps=1"]
CODEC = ["codec.quantizer.codebook_size=16", "codec.schedule=[4]", "training.continuous_steps=1"]
RENDERER = [f"training.{each}" for each in ("second_phase_step=2", "warmup_steps=1")]
RENDERER += [f"training.discriminator_{each}" for each in ("width=8", "depth=2")]
LLAMA = ["llama.width=16", "llama.depth=1", "llama.num_heads=2", "text_vocabulary=300"]
VERBS = {
    "tokenizer": (
        tokenizer.train,
        TrainTokenizer,
        ["data=sc", *SIZES, *CODEC, "held_out=2", *(f"training.{each}" for each in SCHEDULE)],
    ),
    "renderer": (
        renderer.train,
        TrainRenderer,
        ["data=sc", "tokenizer=runs/tokenizer", "steps=6", "held_out=2", *RENDERER],
    ),
    "pretrain": (
        pretrain.train,
        Pretrain,
        ["data=ids", "text=words", *SCHEDULE, *LLAMA],
    ),
    "sft": (sft.train, Tune, ["data=ids", "text=words", "model=runs/pretrain", *SCHEDULE]),
    "adapt": (
        adapt.train,
        Adapt,
        ["data=ids", "text=words", "model=runs/pretrain", "denoise.blocks=[1,1,2]", "denoise.text_block=4", *SCHEDULE],
    ),
    "rl": (
        rl.train,
        Reinforce,
        ["model=runs/pretrain", "rewards={tiny_runs.low: 1.0}", "grpo.group=2", "grpo.updates=2", *SCHEDULE],
    ),
}
MODULES = {"tokenizer": TokenizerTraining, "renderer": RendererTraining, "adapt": DenoiseTraining, "rl": GRPOTraining}
WEIGHTS = dict.fromkeys(("pretrain", "sft", "adapt", "rl"), "model") | {"tokenizer": "decoder", "renderer": "renderer"}


def low(images, ids, prompts) -> torch.Tensor:
    """A reward: that ids are small."""
    return -ids.float().mean(1)


def make_all(*verbs) -> None:
    """Make data, and a finished run of each verb (of `verbs` alone, with ids), in the working directory."""
    make_scenes(Path("sc"), 12, level="tiny")
    pack_text(["A fox sleeps.", "A bell rings."] * 20, Path("words"))
    for verb in verbs or VERBS:
        train(verb, verb)
        if verb == "tokenizer":
            tokenize_shards(Path("sc"), Path("runs/tokenizer"), Path("ids"))


def train(verb, name, *overrides, runs=Path("runs")):
    work, settings, own = VERBS[verb]
    return work(load_config(settings, f"tiny/{verb}", [*ALL, *own, f"name={name}", *overrides]), runs)


def cut(verb, name, *overrides, step=3):
    """Train, and be stopped before a step."""
    module = MODULES.get(verb, LanguageModelTraining)
    with pytest.MonkeyPatch.context() as patch:
        original = module.training_step

        def stopping(self, *arguments):
            if self.global_step == step:
                raise OSError("the power is gone")
            return original(self, *arguments)

        patch.setattr(module, "training_step", stopping)
        with pytest.raises(OSError, match="the power is gone"):
            train(verb, name, *overrides)


def weights(run, verb):
    return load_file(Path(run) / WEIGHTS[verb] / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
