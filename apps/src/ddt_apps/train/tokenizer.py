"""ddt train-tokenizer: encoder, codebook and decoder together, from picture shards."""

import re
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import lightning
import torch
from torch import Tensor

from ddt_apps.run.config import first_difference, load_config
from ddt_apps.run.devices import pick_device, pick_precision
from ddt_apps.run.folder import RUNS, Run
from ddt_apps.shards.latents import latents_of, open_latents
from ddt_data import Mixture, open_shards
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTDecoder, DecoderConfig
from ddt_decoder.sd3 import fill_from_sd3
from ddt_tokenizer import DDTTokenizer, LatentConfig, TokenizerConfig
from ddt_tokenizer.callbacks import HealthMonitor, ImageGrid, NaNGuard
from ddt_tokenizer.codec import Codec, usual_steps
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


@dataclass(frozen=True)
class TrainTokenizer:
    """Settings of `ddt train-tokenizer`."""

    # Folder of picture shards, or several with their shares: a:0.8,b:0.2. Or of latent shards (ddt data latents).
    data: str
    name: str = "tokenizer"  # of the run: runs/<name>
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    # Folder or Hub id of a diffusers autoencoder whose latents encoder and decoder work on: replaces their `latents`.
    vae: str | None = None
    init_from: str | None = None  # run whose tokenizer and decoder to start from (fine-tuning)
    init_sd3: str | None = None  # diffusers SD3Transformer2DModel folder to fill the decoder's image stream from
    batch_size: int = 64
    accumulate: int = 1  # batches whose gradients make one step
    gradient_clip: float | None = 1.0  # largest gradient norm
    held_out: int = 8  # last pictures of data, which are not trained on but drawn into samples/
    watch_every: int = 100  # steps between two samples, and between two measurements of codebook health
    tensorboard: bool = True  # where tensorboard is installed
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0  # processes that read and decode pictures

    def __post_init__(self):
        pairs = (
            ("image_size", self.tokenizer.image_size, self.decoder.image_size),
            ("codebook_size", self.tokenizer.quantizer.codebook_size, self.decoder.codebook_size),
            ("num_tokens / sum of schedule", self.tokenizer.encoder.num_tokens, sum(self.decoder.schedule)),
            ("code_width / token_width", self.tokenizer.quantizer.code_width, self.decoder.network.token_width),
            ("latents", asdict(self.tokenizer.latents), asdict(self.decoder.latents)),
        )
        for name, tokenizer, decoder in pairs:
            if tokenizer != decoder:
                raise ValueError(
                    f"{name} is {tokenizer} in the tokenizer and {decoder} in the decoder; make them equal"
                )
        if self.training.continuous_steps >= self.training.optimizer.steps:
            raise ValueError(
                f"training.continuous_steps ({self.training.continuous_steps}) must be below training.optimizer.steps "
                f"({self.training.optimizer.steps}), or no codebook is learned"
            )
        if self.init_from and self.training.continuous_steps:
            raise ValueError(
                f"training.continuous_steps ({self.training.continuous_steps}) must be 0 with init_from: the codebook "
                f"is there"
            )
        if self.init_from and self.init_sd3:
            raise ValueError("init_from and init_sd3 both give the decoder its first weights; set one")


def pictures_of(samples: list[dict]) -> Tensor:
    """Collate the pictures of samples, targets of edits included, into images [B, 3, H, W].

    The target of an edit stands in for its source in half of the samples, so that the batch keeps its size.
    """
    turns = [sample["target"] if "target" in sample and i % 2 else sample["image"] for i, sample in enumerate(samples)]
    return to_tensor(turns)


def split_pictures(folder: str, image_size: int, held_out: int) -> tuple[Mixture, Tensor]:
    """Read picture shards: what to train on, and the last `held_out` pictures [n, 3, H, W].

    Raises:
        FileNotFoundError, ValueError: The shards are missing, hold no pictures, too few, or of another size.
    """
    dataset = open_shards(folder)
    size = dataset.manifest.image_size
    if size is None:
        raise ValueError(f"'{folder}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if size != image_size:
        raise ValueError(
            f"pictures in '{folder}' have {size} px, the tokenizer takes {image_size}; pack them again, or set "
            f"tokenizer.image_size and decoder.image_size"
        )
    kept = dataset.without_last(held_out)
    if not held_out:
        return kept, torch.empty(0, 3, size, size)
    return kept, to_tensor([dataset[i]["image"] for i in range(len(kept), len(dataset))])


def build(config: TrainTokenizer, cached: LatentConfig | None = None) -> tuple[DDTTokenizer, DDTDecoder]:
    """Make the tokenizer and the decoder as they are before the first step; `cached` is the space of latent shards.

    Raises:
        FileNotFoundError, ValueError: What they should start from is missing or of another shape; a VAE is missing.
    """
    tokenizer_config, decoder_config = config.tokenizer, config.decoder
    if config.vae or cached:
        latents = LatentConfig.from_vae(config.vae) if config.vae else cached
        encoder = replace(tokenizer_config.encoder, channels=latents.channels)
        network = replace(decoder_config.network, channels=latents.channels)
        tokenizer_config = replace(tokenizer_config, latents=latents, encoder=encoder)
        theirs = type(decoder_config.latents)(**asdict(latents))
        decoder_config = replace(decoder_config, latents=theirs, network=network)
    elif not tokenizer_config.latents.pixels and tokenizer_config.latents.vae is None:
        raise ValueError("latents are those of an autoencoder, and none is named; set vae=<folder or Hub id>")
    torch.manual_seed(config.seed)
    tokenizer, decoder = DDTTokenizer(tokenizer_config), DDTDecoder(decoder_config)
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
        ("tokenizer.encoder", theirs.encoder, ours.encoder),
        ("tokenizer.quantizer", theirs.quantizer, ours.quantizer),
        ("latents", replace(theirs.latents, vae=ours.latents.vae), ours.latents),
        ("decoder.network", replace(source.decoder.config.network, **checkpointing), network),
    ):
        if difference := first_difference(old, new, part):
            key, before, now = difference
            raise ValueError(f"init_from '{run}' has {key}={before}, not {now}; take its config.yaml as CONFIG")
    tokenizer.load_state_dict(source.tokenizer.state_dict())
    decoder.load_state_dict(source.decoder.state_dict())


def draw_latents(decoder: DDTDecoder, latents: Tensor) -> Tensor:
    """Turn held-out latents [n, C, h, w] into pictures [n, 3, H, W].

    Raises:
        ValueError: The VAE is not there; training itself needs none.
    """
    try:
        return decoder.latent_space.decode(latents) if len(latents) else latents
    except ValueError as error:
        raise ValueError(f"{error}; name it with vae=, or draw no samples with held_out=0") from error


def watchers(config: TrainTokenizer, run: Run, decoder: DDTDecoder, held_out: Tensor) -> list[lightning.Callback]:
    """What watches the run: codebook health, samples, and the guard against NaN."""
    callbacks: list[lightning.Callback] = [HealthMonitor(run.folder / "health.json", config.watch_every)]
    if len(held_out):
        draw = partial(DDTDecoder.decode, num_steps=usual_steps(decoder))
        callbacks.append(ImageGrid(held_out, run.folder / "samples", config.watch_every, draw))
    return callbacks + nan_guard(config.precision, config.device, run)


def nan_guard(precision: str, device: str, run: Run) -> list[lightning.Callback]:
    """Stop a run, with a checkpoint, before a gradient that is not finite reaches the weights."""
    # With loss scaling gradients overflow now and then, and their step is left out.
    return [] if pick_precision(precision, pick_device(device)) == "16-mixed" else [NaNGuard(run.checkpoint)]


def run_train_tokenizer(config: str, overrides: list[str]) -> None:
    """Train from a configuration; see `train`."""
    train(load_config(TrainTokenizer, config, overrides))


def train(config: TrainTokenizer) -> Path:
    """Train, or continue, and export `tokenizer/` and `decoder/` in the run folder, which is returned.

    With `training.ema_decay` the exported decoder has the averaged weights. Beside it: `samples/<step>.png` (held-out
    pictures, and below them what the decoder makes of their ids) and `health.json`.

    Raises:
        FileNotFoundError, ValueError: The shards are missing, or of another picture size; the run is of another config;
            a gradient is not finite.
    """
    run = Run(RUNS / config.name, config)
    if run.finished:
        return run.folder
    cached = open_shards(config.data).manifest.latents
    tokenizer, decoder = build(config, LatentConfig(**cached) if cached else None)
    if cached:
        dataset, held_out = open_latents(
            config.data, tokenizer.config.latents, config.tokenizer.image_size, config.held_out
        )
        held_out = draw_latents(decoder, held_out)
    else:
        dataset, held_out = split_pictures(config.data, config.tokenizer.image_size, config.held_out)
    steps, batches = config.training.optimizer.steps, config.training.optimizer.steps * config.accumulate
    module = TokenizerTraining(tokenizer, decoder, config.training, config.seed, cached is not None)
    run.fit(
        module,
        ShardStream(
            dataset, latents_of if cached else pictures_of, config.batch_size, batches, config.seed, config.workers
        ),
        stage="train-tokenizer",
        steps=steps,
        device=config.device,
        precision=config.precision,
        gradient_clip=config.gradient_clip,
        accumulate=config.accumulate,
        callbacks=watchers(config, run, decoder, held_out),
        tensorboard=config.tensorboard,
    )
    tokenizer.save_pretrained(run.folder / "tokenizer")
    exported = decoder if module.average is None else module.average.module
    exported.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    exported.save_pretrained(run.folder / "decoder")
    run.finish()
    return run.folder
