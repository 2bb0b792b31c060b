"""ddt train-vae: a small autoencoder of pictures, in whose latents a tokenizer then works."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from PIL import Image
from torch import Tensor

from ddt_apps.run.atomic import writing
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run, Savable
from ddt_apps.train.pictures import open_pictures
from ddt_apps.train.settings import TrainVAE
from ddt_data.shards.datamodule import ShardStream
from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.images import psnr, tile
from ddt_tokenizer.vae_training import VAETraining, build_vae, save_vae, standardise

MEASURED = 512  # pictures at most, of which shift and scale of the latents are taken


class VAESamples(EverySteps):
    """Draws held-out pictures [n, 3, H, W] into `samples/<step>.png`, below the originals.

    Logs the mean PSNR in dB as `held_out_psnr`.
    """

    def __init__(self, pictures: Tensor, folder: Path, every: int):
        self.pictures, self.folder, self.every = pictures, folder, every

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: VAETraining, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due(trainer):
            return
        latents = module.vae.encode(self.pictures.to(module.device)).latents  # its own forward pass would round them
        drawn = module.vae.decode(latents).sample.float().cpu().clamp(-1, 1)
        module.log("held_out_psnr", psnr(drawn, self.pictures).mean())
        if not trainer.is_global_zero:
            return
        with writing(self.folder / f"{trainer.global_step:08d}.png") as file:
            sheet = tile(torch.cat([self.pictures, drawn]), columns=len(drawn))
            Image.fromarray(sheet).save(file, format="png")


def train(config: TrainVAE, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export `vae/`, a folder of diffusers, in the run folder, which is returned.

    More in `carry_out`.

    Raises:
        FileNotFoundError: If the shards are missing.
        ValueError: If they hold no pictures of that size, the run is of another config, or a gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def _work(run: Run) -> Exports:
    config: TrainVAE = run.config
    pictures = open_pictures(config.data, config.image_size, config.held_out)
    if pictures.space is not None:
        raise ValueError(
            f"'{config.data}' holds latents, and an autoencoder learns pictures; name their picture shards"
        )
    module = VAETraining(build_vae(config.vae, config.seed).train(), config.training, config.seed)
    order = (config.batch_size, config.batches, config.seed, config.workers)
    watchers = []
    if len(pictures.held_out):
        watchers.append(VAESamples(pictures.held_out, run.folder / "samples", config.watch_every))
    run.fit(module, ShardStream(pictures.dataset, pictures.collate, *order), watchers)

    def exports() -> dict[str, Savable]:
        vae = module.vae.to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()
        some = [pictures.dataset[i] for i in range(min(MEASURED, len(pictures.dataset)))]
        standardise(vae, pictures.collate(some))
        return {"vae": SimpleNamespace(save_pretrained=partial(save_vae, vae))}

    return exports
