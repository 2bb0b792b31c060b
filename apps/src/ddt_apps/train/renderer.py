"""ddt train-renderer: a decoder's ids to images in one step, encoder and codebook frozen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from PIL import Image
from torch import Tensor

from ddt_apps.run.atomic import writing
from ddt_apps.run.config import load_config
from ddt_apps.run.folder import RUNS, Run
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.tokenizer import pictures_of, split_pictures
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTRenderer
from ddt_decoder.renderer_training import RendererTraining, RendererTrainingConfig
from ddt_tokenizer import DDTTokenizer
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.images import tile


@dataclass(frozen=True, kw_only=True)
class TrainRenderer(RunSettings):
    """Settings of `ddt train-renderer`."""

    verb: ClassVar[str] = "train-renderer"

    data: str  # folder of picture shards, or several with their shares: a:0.8,b:0.2
    tokenizer: str  # run of `ddt train-tokenizer`
    name: str = "renderer"  # of the run: runs/<name>
    training: RendererTrainingConfig = field(default_factory=RendererTrainingConfig)
    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1  # must be 1: two optimizers step after each batch
    gradient_clip: float | None = None  # must be null: training.gradient_clip is the largest norm
    held_out: int = 8  # last pictures of data, which are not trained on but drawn into samples/
    watch_every: int = 100  # steps between two samples

    def __post_init__(self):
        if self.accumulate != 1:
            raise ValueError(
                f"accumulate ({self.accumulate}) must be 1: a renderer and its discriminator step after each batch; "
                f"set batch_size"
            )
        if self.gradient_clip is not None:
            raise ValueError(
                f"gradient_clip ({self.gradient_clip}) must be null: a renderer's is training.gradient_clip"
            )


class EncodedStream(ShardStream):
    """Batches of pictures, with their ids from a frozen tokenizer: (ids [B, K], images [B, 3, H, W]).

    Args:
        tokenizer: Moved to the device of the run.
        arguments: Of `ShardStream`.
    """

    def __init__(self, tokenizer: DDTTokenizer, *arguments: Any):
        super().__init__(*arguments)
        self.tokenizer = tokenizer

    def setup(self, stage: str) -> None:
        self.tokenizer.to(self.trainer.strategy.root_device)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.tokenizer.encode(batch), batch


class RendererSamples(EverySteps):
    """Draws the held-out pictures [n, 3, H, W] as training goes on.

    `samples/<step>.png` has three rows: originals, the decoder, the renderer.
    """

    def __init__(self, codec: Codec, pictures: Tensor, folder: Path, every: int):
        self.folder, self.every = folder, every
        self.ids = codec.encode(pictures)
        self.above = torch.cat([pictures, codec.decode(self.ids)])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: RendererTraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due(trainer):
            return
        drawn = module.renderer.decode(self.ids.to(module.device)).cpu()
        with writing(self.folder / f"{trainer.global_step:08d}.png") as file:
            sheet = tile(torch.cat([self.above, drawn]), columns=len(self.ids))
            Image.fromarray(sheet).save(file, format="png")


def run_train_renderer(config: str, overrides: list[str]) -> None:
    """Train from a configuration; see `train`."""
    train(load_config(TrainRenderer, config, overrides))


def train(config: TrainRenderer) -> Path:
    """Train, or continue, and export `renderer/` in the run folder, which is returned.

    Raises:
        FileNotFoundError, ValueError: The shards or the tokenizer are missing, or of different sizes; the run is of
            another config; a gradient is not finite.
    """
    codec = Codec.from_pretrained(config.tokenizer)
    dataset, held_out = split_pictures(config.data, codec.image_size, config.held_out)
    run = Run(RUNS / config.name, config)
    if run.finished:
        return run.folder
    renderer = DDTRenderer.from_decoder(codec.decoder).train()
    settings = (pictures_of, config.batch_size, config.batches, config.seed, config.workers)
    watchers = []
    if len(held_out):
        watchers.append(RendererSamples(codec, held_out, run.folder / "samples", config.watch_every))
    module = RendererTraining(renderer, config.training, seed=config.seed)
    run.fit(module, EncodedStream(codec.tokenizer, dataset, *settings), watchers)
    renderer.save_pretrained(run.folder / "renderer")
    run.finish()
    return run.folder
