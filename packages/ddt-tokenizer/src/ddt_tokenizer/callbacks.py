"""What watches over a training run: pictures and codebook health. Needs the `[train]` extra."""

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from ddt_tokenizer.every_steps import EverySteps
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import psnr, tile
from ddt_tokenizer.ranks import gathered

logger = logging.getLogger(__name__)
Draw = Callable[[nn.Module, Tensor], Tensor]


class ImageGrid(EverySteps):
    """Draws a few fixed pictures from their tokens as training goes on: `<folder>/<step>.png`, and TensorBoard.

    Originals stand in the first row, reconstructions in the second. Logs their mean PSNR in dB as `held_out_psnr`.

    Args:
        images: Float32 [n, 3, H, W] in [-1, 1].
        draw: Gives images [n, 3, H, W] for a decoder and tokens [n, K, D]; by default its `decode`.

    Example:
        >>> grid = ImageGrid(torch.zeros(4, 3, 32, 32), "samples", every=500)
    """

    def __init__(self, images: Tensor, folder: str | Path, every: int, draw: Draw | None = None):
        self.images, self.folder, self.every = images, Path(folder), every
        self.draw = draw

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not self.due(trainer):
            return
        step, tokenizer = trainer.global_step, module.tokenizer
        decoder = module.decoder if module.average is None else module.average.module
        # Each part's own: whoever trains may keep some in evaluation mode, such as a frozen decoder.
        modes = [(part, part.training) for part in (*tokenizer.modules(), *decoder.modules())]
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            latents = tokenizer.latent_space.encode(self.images.to(module.device))
            vectors = tokenizer.encoder(latents)
            quantized = step > module.config.continuous_steps
            tokens = tokenizer.quantizer(vectors).tokens if quantized else tokenizer.quantizer.continuous(vectors)
            drawn = self.draw(decoder, tokens) if self.draw else decoder.decode(tokens)
        for part, mode in modes:
            part.training = mode
        module.log("held_out_psnr", psnr(drawn.cpu(), self.images).mean())
        if not trainer.is_global_zero:
            return
        picture = tile(torch.cat([self.images, drawn.cpu()]), columns=len(self.images))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{step:08d}.part"
        Image.fromarray(picture).save(partial, format="png")
        partial.replace(self.folder / f"{step:08d}.png")
        for board in trainer.loggers:
            if isinstance(board, TensorBoardLogger):
                board.experiment.add_image("reconstructions", picture, step, dataformats="HWC")


class HealthMonitor(EverySteps):
    """Measures the codebook over the ids of recent steps, logs the figures, and keeps the last ones as JSON.

    Warns of positions that tell next to nothing (`CodebookHealth.dead_positions`), each time that there are others.
    Its figures after a resume are those of an uninterrupted run.

    Args:
        file: Such as `runs/mine/health.json`; None to log only.
        recent: Batches whose ids are measured, of all ranks.

    Example:
        >>> monitor = HealthMonitor("health.json", every=500)
    """

    def __init__(self, file: str | Path | None, every: int, recent: int = 50):
        self.file, self.every = None if file is None else Path(file), every
        self.ids: deque[Tensor] = deque(maxlen=recent)
        self.gathered: list[Tensor] = []  # of the step that is not over: a checkpoint holds whole steps
        self.revived = self.revived_before = 0  # codes, in the whole run and before it was resumed
        self.dead: list[int] = []  # positions, when last measured

    def state_dict(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "revived": self.revived, "dead": self.dead}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ids.extend(state_dict["ids"])
        self.revived = self.revived_before = state_dict["revived"]
        self.dead = state_dict.get("dead", [])  # not in checkpoints of before

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        if "ids" in outputs:
            self.gathered.append(gathered(outputs["ids"]).cpu())
        if trainer.global_step == self._seen:
            return
        self.ids.extend(self.gathered)
        self.gathered.clear()
        quantizer = module.tokenizer.quantizer
        self.revived = self.revived_before + quantizer.revived
        if not self.due(trainer) or not self.ids:
            return
        health = codebook_health(torch.cat(list(self.ids)), quantizer.codebook.detach().cpu(), self.revived)
        names = ("usage", "dead_codes", "perplexity", "bits_per_position", "codes_per_position")
        names += ("effective_dimensions", "revived")
        figures = {f"codes/{name}": float(getattr(health, name)) for name in names}
        module.log_dict(figures | {"codes/dead_positions": float(len(health.dead_positions))})
        if health.dead_positions != self.dead:
            self.dead = health.dead_positions
            if trainer.is_global_zero:
                logger.warning("step %d: %s", trainer.global_step, _told(self.dead, len(health.position_bits)))
        if self.file is not None and trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            health.save(self.file)


def _told(dead: list[int], positions: int) -> str:
    if not dead:
        return f"all {positions} positions of the ids tell something again"
    return (
        f"{len(dead)} of {positions} positions of the ids tell next to nothing: {', '.join(map(str, dead))}. Where the "
        f"finest are hidden often (0 is the finest), show them more: a smaller prefix_share, or whole_steps before it"
    )
