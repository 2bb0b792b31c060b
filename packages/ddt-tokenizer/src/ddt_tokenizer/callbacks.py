"""What watches over a training run: a guard against NaN, pictures, codebook health. Needs the `[train]` extra."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from ddt_tokenizer.health import codebook_health

Draw = Callable[[nn.Module, Tensor], Tensor]


def tile(pictures: Tensor, columns: int) -> Tensor:
    """Lay pictures [n, 3, H, W] in [-1, 1] out in rows: uint8 [rows * H, columns * W, 3].

    Example:
        >>> tile(torch.zeros(6, 3, 8, 8), columns=3).shape
        torch.Size([16, 24, 3])
    """
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    rows = pixels.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    return rows.flatten(2, 3).flatten(0, 1)


def _decode(decoder: nn.Module, tokens: Tensor) -> Tensor:
    return decoder.decode(tokens)


class NaNGuard(Callback):
    """Stops before a gradient that is not finite reaches the weights, and saves the state from before that step.

    A non-finite loss gives such a gradient, and gradients are equal on all ranks, so all of them stop. What the
    codebook took from its batches is undone. Not for fp16 with loss scaling, where gradients overflow as a rule.

    Args:
        checkpoint: File to write; None to write nothing.

    Raises:
        ValueError: A gradient is not finite; names the step and the weight.

    Example:
        >>> guard = NaNGuard("before_nan.ckpt")  # lightning.Trainer(callbacks=[guard])
    """

    def __init__(self, checkpoint: str | Path | None = None):
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.before: dict[str, Tensor] = {}  # buffers as they were before the step

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.checkpoint is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            self.before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
        if not named or torch.stack(torch._foreach_norm([grad for _, grad in named])).isfinite().all():
            return
        name = next((name for name, grad in named if not grad.isfinite().all()), "the largest weights (overflow)")
        saved = ""
        if self.checkpoint is not None:
            for name, buffer in module.named_buffers():
                buffer.copy_(self.before[name])
            part = self.checkpoint.with_name(f".{self.checkpoint.name}.part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.checkpoint)
            saved = f"; the state before it is in {self.checkpoint}"
        raise ValueError(
            f"the gradient of {name} is not finite at step {trainer.global_step}{saved}; lower the learning rate (now "
            f"{optimizer.param_groups[0]['lr']:.3g}) or clip gradients, and look for broken pictures"
        )


class _EverySteps(Callback):
    """Acts after every n-th step, once, however many batches make a step."""

    every: int

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seen = trainer.global_step

    def due(self, trainer: Trainer) -> bool:
        """Tell whether a step that counts has just ended; called after every batch."""
        before, self.seen = self.seen, trainer.global_step
        return self.seen != before and self.seen % self.every == 0


class ImageGrid(_EverySteps):
    """Draws a few fixed pictures from their tokens as training goes on: `<folder>/<step>.png`, and TensorBoard.

    Originals stand in the first row, reconstructions in the second.

    Args:
        images: Float32 [n, 3, H, W] in [-1, 1].
        folder: Where the pictures go.
        every: Steps between two.
        draw: Gives images [n, 3, H, W] for a decoder and tokens [n, K, D]; by default its `decode`.

    Example:
        >>> grid = ImageGrid(torch.zeros(4, 3, 32, 32), "samples", every=500)
    """

    def __init__(self, images: Tensor, folder: str | Path, every: int, draw: Draw | None = None):
        self.images, self.folder, self.every = images, Path(folder), every
        self.draw = draw or _decode

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due(trainer) or not trainer.is_global_zero:
            return
        step, tokenizer = trainer.global_step, module.tokenizer
        decoder = module.decoder if module.average is None else module.average.module
        # Each part's own: a frozen codebook is in evaluation mode already.
        modes = [(part, part.training) for part in (*tokenizer.modules(), *decoder.modules())]
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            latents = tokenizer.latent_space.encode(self.images.to(module.device))
            vectors = tokenizer.encoder(latents)
            quantized = step > module.config.continuous_steps
            tokens = tokenizer.quantizer(vectors).tokens if quantized else tokenizer.quantizer.continuous(vectors)
            drawn = self.draw(decoder, tokens)
        for part, mode in modes:
            part.training = mode
        picture = tile(torch.cat([self.images, drawn.cpu()]), columns=len(self.images))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{step:08d}.part"
        Image.fromarray(picture.numpy()).save(partial, format="png")
        partial.replace(self.folder / f"{step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", picture.numpy(), step, dataformats="HWC")


class HealthMonitor(_EverySteps):
    """Measures the codebook over the ids of recent steps, logs the figures, and keeps the last ones as JSON.

    Its figures after a resume are those of an uninterrupted run.

    Args:
        file: Such as `runs/mine/health.json`; None to log only.
        every: Steps between two measurements.
        recent: Batches whose ids are measured (those of this rank).

    Example:
        >>> monitor = HealthMonitor("health.json", every=500)
    """

    def __init__(self, file: str | Path | None, every: int, recent: int = 50):
        self.file, self.every = None if file is None else Path(file), every
        self.ids: deque[Tensor] = deque(maxlen=recent)
        self.revived = self.revived_before = 0  # codes, in the whole run and before it was resumed

    def state_dict(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "revived": self.revived}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ids.extend(state_dict["ids"])
        self.revived = self.revived_before = state_dict["revived"]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "ids" in outputs:
            self.ids.append(outputs["ids"].cpu())
        quantizer = module.tokenizer.quantizer
        self.revived = self.revived_before + quantizer.revived
        if not self.due(trainer) or not self.ids:
            return
        health = codebook_health(torch.cat(list(self.ids)), quantizer.codebook.detach().cpu(), self.revived)
        names = ("usage", "dead_codes", "perplexity", "bits_per_position", "codes_per_position")
        names += ("effective_dimensions", "revived")
        module.log_dict({f"codes/{name}": float(getattr(health, name)) for name in names})
        if self.file is not None and trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            health.save(self.file)
