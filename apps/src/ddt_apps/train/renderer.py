"""ddt train-renderer: a decoder's ids to images in one step, encoder and codebook frozen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from PIL import Image
from torch import Tensor

from ddt_apps.run.atomic import writing
from ddt_apps.run.config import load_config
from ddt_apps.run.devices import pick_device
from ddt_apps.run.folder import RUNS, Run
from ddt_apps.train.tokenizer import nan_guard, pictures_of, split_pictures
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTRenderer
from ddt_decoder.renderer_training import RendererTraining, RendererTrainingConfig
from ddt_tokenizer.callbacks import tile
from ddt_tokenizer.codec import Codec


@dataclass(frozen=True)
class TrainRenderer:
    """Settings of `ddt train-renderer`."""

    data: str  # folder of picture shards, or several with their shares: a:0.8,b:0.2
    tokenizer: str  # run of `ddt train-tokenizer`
    name: str = "renderer"  # of the run: runs/<name>
    training: RendererTrainingConfig = field(default_factory=RendererTrainingConfig)
    steps: int = 100_000
    batch_size: int = 64
    held_out: int = 8  # last pictures of data, which are not trained on but drawn into samples/
    watch_every: int = 100  # steps between two samples
    tensorboard: bool = True  # where tensorboard is installed
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0  # processes that read and decode pictures


class EncodedStream(ShardStream):
    """Batches of pictures, with their ids from a frozen tokenizer: (ids [B, K], images [B, 3, H, W])."""

    codec: Codec

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.codec.tokenizer.encode(batch), batch


class RendererSamples(lightning.Callback):
    """Draws the held-out pictures [n, 3, H, W] as training goes on.

    `samples/<step>.png` has three rows: originals, the decoder, the renderer.
    """

    def __init__(self, codec: Codec, pictures: Tensor, folder: Path, every: int):
        self.pictures, self.folder, self.every = pictures, folder, every
        self.ids = codec.encode(pictures)
        self.above = torch.cat([pictures, codec.decode(self.ids)])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: RendererTraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every:
            return
        drawn = module.renderer.decode(self.ids.to(module.device)).cpu()
        with writing(self.folder / f"{trainer.global_step:08d}.png") as file:
            sheet = tile(torch.cat([self.above, drawn]), columns=len(self.pictures)).numpy()
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
    codec.tokenizer.to(pick_device(config.device))
    renderer = DDTRenderer.from_decoder(codec.decoder).train()
    stream = EncodedStream(dataset, pictures_of, config.batch_size, config.steps, config.seed, config.workers)
    stream.codec = codec
    watching: list[lightning.Callback] = nan_guard(config.precision, config.device, run)
    if len(held_out):
        watching.append(RendererSamples(codec, held_out, run.folder / "samples", config.watch_every))
    run.fit(
        RendererTraining(renderer, config.training, seed=config.seed),
        stream,
        stage="train-renderer",
        steps=config.steps,
        device=config.device,
        precision=config.precision,
        callbacks=watching,
        tensorboard=config.tensorboard,
    )
    renderer.save_pretrained(run.folder / "renderer")
    run.finish()
    return run.folder
