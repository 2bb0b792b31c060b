"""ddt train-renderer: a decoder's ids to images in one step, encoder and codebook frozen."""

from pathlib import Path
from typing import Any

import lightning
import torch
from PIL import Image
from torch import Tensor

from ddt_apps.run.atomic import writing
from ddt_apps.run.carrying_out import RUNS, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.pictures import open_pictures
from ddt_apps.train.settings import TrainRenderer
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTRenderer
from ddt_decoder.renderer_training import RendererTraining
from ddt_tokenizer import DDTTokenizer
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.images import psnr, tile


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

    `samples/<step>.png` has three rows: originals, the decoder, the renderer. Logs the renderer's mean PSNR in dB as
    `held_out_psnr`.
    """

    def __init__(self, codec: Codec, pictures: Tensor, folder: Path, every: int):
        self.folder, self.every = folder, every
        self.pictures, self.ids = pictures, codec.encode(pictures)
        self.above = torch.cat([pictures, codec.decode(self.ids)])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: RendererTraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due(trainer):
            return
        drawn = module.renderer.decode(self.ids.to(module.device)).cpu()
        module.log("held_out_psnr", psnr(drawn, self.pictures).mean())
        with writing(self.folder / f"{trainer.global_step:08d}.png") as file:
            sheet = tile(torch.cat([self.above, drawn]), columns=len(self.ids))
            Image.fromarray(sheet).save(file, format="png")


def train(config: TrainRenderer, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export `renderer/` in the run folder, which is returned; more in `carry_out`.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        ValueError: If they are of different sizes, the shards hold no pictures, the run is of another config, or a
            gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def _work(run: Run) -> None:
    config: TrainRenderer = run.config
    codec = Codec.from_pretrained(config.tokenizer)
    pictures = open_pictures(config.data, codec.image_size, config.held_out)
    if pictures.space is not None:
        raise ValueError(f"'{config.data}' holds latents, and a renderer learns pictures; name their picture shards")
    renderer = DDTRenderer.from_decoder(codec.decoder).train()
    order = (config.batch_size, config.batches, config.seed, config.workers)
    module = RendererTraining(renderer, config.training, seed=config.seed)
    stream = EncodedStream(codec.tokenizer, pictures.dataset, pictures.collate, *order)
    watchers = []
    if len(pictures.held_out):
        watchers.append(RendererSamples(codec, pictures.held_out, run.folder / "samples", config.watch_every))
    run.fit(module, stream, watchers)
    renderer.save_pretrained(run.folder / "renderer")
    run.finish()
