"""ddt train-tokenizer: encoder, codebook and decoder together, from picture shards."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ddt_apps.codec import to_tensor
from ddt_apps.config import load_config
from ddt_apps.runs import RUNS, Run
from ddt_data import ShardDataset
from ddt_data.datamodule import ShardStream
from ddt_decoder import DDTDecoder, DecoderConfig
from ddt_tokenizer import DDTTokenizer, TokenizerConfig
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig


@dataclass(frozen=True)
class TrainTokenizer:
    """Settings of `ddt train-tokenizer`."""

    data: str  # folder of picture shards
    name: str = "tokenizer"  # of the run: runs/<name>
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch_size: int = 64
    gradient_clip: float = 1.0  # largest gradient norm
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


def pictures_of(samples: list[dict]) -> Tensor:
    """Collate the pictures of samples, targets of edits included, into latents [B, 3, H, W].

    The target of an edit stands in for its source in half of the samples, so that the batch keeps its size.
    """
    turns = [sample["target"] if "target" in sample and i % 2 else sample["image"] for i, sample in enumerate(samples)]
    return to_tensor(turns)


def run_train_tokenizer(config: str, overrides: list[str]) -> None:
    """Train from a configuration; see `train`."""
    train(load_config(TrainTokenizer, config, overrides))


def train(config: TrainTokenizer) -> Path:
    """Train, or continue, and export `tokenizer/` and `decoder/` in the run folder, which is returned.

    Raises:
        FileNotFoundError, ValueError: The shards are missing, or of another picture size; the run is of another config.
    """
    dataset = ShardDataset(config.data)
    if dataset.manifest.image_size is None:
        raise ValueError(f"'{config.data}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if dataset.manifest.image_size != config.tokenizer.image_size:
        raise ValueError(
            f"pictures in '{config.data}' have {dataset.manifest.image_size} px, the tokenizer takes "
            f"{config.tokenizer.image_size}; pack them again, or set tokenizer.image_size and decoder.image_size"
        )
    run = Run(RUNS / config.name, config)
    if run.finished:
        return run.folder
    torch.manual_seed(config.seed)
    tokenizer, decoder = DDTTokenizer(config.tokenizer), DDTDecoder(config.decoder)
    steps = config.training.optimizer.steps
    run.fit(
        TokenizerTraining(tokenizer, decoder, config.training, config.seed),
        ShardStream(dataset, pictures_of, config.batch_size, steps, config.seed, config.workers),
        stage="train-tokenizer",
        steps=steps,
        device=config.device,
        precision=config.precision,
        gradient_clip=config.gradient_clip,
    )
    tokenizer.save_pretrained(run.folder / "tokenizer")
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    decoder.save_pretrained(run.folder / "decoder")
    run.finish()
    return run.folder
