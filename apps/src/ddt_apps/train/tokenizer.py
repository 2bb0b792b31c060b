"""ddt train-tokenizer: encoder, codebook and decoder together, from picture shards."""

import re
from dataclasses import replace
from pathlib import Path

import lightning
import torch
from torch import Tensor

from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.config import first_difference
from ddt_apps.run.folder import Run, Savable
from ddt_apps.train.pictures import open_pictures
from ddt_apps.train.settings import TrainTokenizer
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTDecoder
from ddt_decoder.sd3 import fill_from_sd3
from ddt_tokenizer import DDTTokenizer, LatentConfig
from ddt_tokenizer.callbacks import HealthMonitor, ImageGrid
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.training import TokenizerTraining


def build(
    config: TrainTokenizer, cached: LatentConfig | None = None, device: str = "cpu"
) -> tuple[DDTTokenizer, DDTDecoder]:
    """Make the tokenizer and the decoder as they are before the first step.

    Args:
        cached: The space of latent shards.
        device: "meta" makes them without their weights.

    Raises:
        FileNotFoundError: If what they should start from is missing.
        ValueError: If it is of another shape, or a VAE is missing.
    """
    codec = config.codec
    if config.vae or cached:
        codec = replace(codec, latents=LatentConfig.from_vae(config.vae) if config.vae else cached)
    elif not codec.latents.pixels and codec.latents.vae is None:
        raise ValueError("latents are those of an autoencoder, and none is named; set vae=<folder or Hub id>")
    torch.manual_seed(config.seed)
    with torch.device(device):
        tokenizer, decoder = DDTTokenizer(codec.tokenizer), DDTDecoder(codec.decoder)
    if device == "meta":
        return tokenizer, decoder
    if config.init_from:
        _start_from(config.init_from, tokenizer, decoder)
    if config.init_sd3:
        unfilled = fill_from_sd3(decoder.network, config.init_sd3)
        names = dict.fromkeys(re.sub(r"blocks\.\d+\.", "blocks.*.", name) for name in unfilled)
        print(f"not filled from '{config.init_sd3}', and trained from scratch: {', '.join(names)}", flush=True)
    return tokenizer, decoder


def _start_from(run: str, tokenizer: DDTTokenizer, decoder: DDTDecoder) -> None:
    source = Codec.from_pretrained(run)
    theirs, ours = source.tokenizer.config, tokenizer.config
    network = decoder.config.network
    checkpointing = {"activation_checkpointing": network.activation_checkpointing}
    for part, old, new in (
        ("codec.encoder", theirs.encoder, ours.encoder),
        ("codec.quantizer", theirs.quantizer, ours.quantizer),
        ("codec.latents", replace(theirs.latents, vae=ours.latents.vae), ours.latents),
        ("codec.network", replace(source.decoder.config.network, **checkpointing), network),
    ):
        if difference := first_difference(old, new, part):
            key, before, now = difference
            raise ValueError(f"init_from '{run}' has {key}={before}, not {now}; take its config.yaml as CONFIG")
    tokenizer.load_state_dict(source.tokenizer.state_dict())
    decoder.load_state_dict(source.decoder.state_dict())


def draw_latents(decoder: DDTDecoder, latents: Tensor) -> Tensor:
    """Turn held-out latents [n, C, h, w] into pictures [n, 3, H, W].

    Raises:
        ValueError: If the VAE is not there; training itself needs none.
    """
    try:
        return decoder.latent_space.decode(latents) if len(latents) else latents
    except ValueError as error:
        raise ValueError(f"{error}; name it with vae=, or draw no samples with held_out=0") from error


def watchers(config: TrainTokenizer, folder: Path, held_out: Tensor) -> list[lightning.Callback]:
    """Return what watches a run in `folder`: codebook health, and samples of held-out pictures."""
    callbacks: list[lightning.Callback] = [HealthMonitor(folder / "health.json", config.watch_every)]
    if len(held_out):
        callbacks.append(ImageGrid(held_out, folder / "samples", config.watch_every))
    return callbacks


def train(config: TrainTokenizer, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export `tokenizer/` and `decoder/` in the run folder, which is returned.

    With `training.ema_decay` the exported decoder has the averaged weights. Beside it: `samples/<step>.png` (held-out
    pictures, and below them what the decoder makes of their ids) and `health.json`. More in `carry_out`.

    Raises:
        FileNotFoundError: If the shards are missing.
        ValueError: If they are of another picture size, the run is of another config, or a gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def _work(run: Run) -> Exports:
    config: TrainTokenizer = run.config
    pictures = open_pictures(config.data, config.codec.image_size, config.held_out, config.vae)
    tokenizer, decoder = build(config, pictures.space, run.builds_on)
    held_out = draw_latents(decoder, pictures.held_out) if pictures.space else pictures.held_out
    order = (config.batch_size, config.batches, config.seed, config.workers)
    module = TokenizerTraining(tokenizer, decoder, config.training, config.seed, pictures.space is not None)
    stream = ShardStream(pictures.dataset, pictures.collate, *order)
    run.fit(module, stream, watchers(config, run.folder, held_out))

    def exports() -> dict[str, Savable]:
        exported = decoder if module.average is None else module.average.module
        exported.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
        return {"tokenizer": tokenizer, "decoder": exported}

    return exports
