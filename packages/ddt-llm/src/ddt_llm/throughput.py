"""How fast a language model trains, and how much of what the machine can do that is (extra `train`).

Shape letters: B batch, L sequence length.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ddt_llm.every_steps import EverySteps
from ddt_llm.head import vocabulary_weights
from ddt_llm.sequences import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLUMNS = ("step", "tokens_per_second", "useful_tokens_per_second", "mfu")


class Throughput(EverySteps):
    """Measures tokens a second, padding included, and useful ones, on which there is a loss, of all ranks; and the MFU.

    All are those of this rank, times as many ranks as there are.

    MFU (arXiv:2204.02311) is the share of the floating-point operations that large matrix products of the run's
    precision reach on this device, measured for a moment when training starts. What activation checkpointing computes
    twice counts once. `file` is a CSV with a row for each measurement, continued by a resumed run; loggers of the
    trainer get the same.
    """

    def __init__(self, file: str | Path, every: int):
        self.file, self.every = Path(file), every

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure what the device can do."""
        super().on_train_start(trainer, module)
        with trainer.precision_plugin.forward_context():
            self.peak = matrix_flops(module.device, next(module.parameters()).dtype)
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Count a batch; write a row every so many steps."""
        self.tokens += batch["input_ids"].numel()
        self.useful += int((batch["labels"][:, 1:] != IGNORED).sum())
        self.flops += training_flops(module.model, **batch)
        if not self.due(trainer):
            return
        step = trainer.global_step
        seconds = time.perf_counter() - self.start
        ranks = trainer.world_size
        found = (ranks * self.tokens / seconds, ranks * self.useful / seconds, self.flops / seconds / self.peak)
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(COLUMNS[1:], found, strict=True)), step)
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = not self.file.exists()
            with self.file.open("a") as file:
                file.write(f"{','.join(COLUMNS)}\n" if new else "")
                file.write(f"{step},{found[0]:.1f},{found[1]:.1f},{found[2]:.4f}\n")
        self._forget()

    def _forget(self) -> None:
        self.start = time.perf_counter()
        self.tokens = self.useful = self.flops = 0


def training_flops(
    model: "PreTrainedModel", input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None
) -> float:
    """Count floating-point operations of a forward and backward pass over a batch [B, L].

    6 * weights of the layers * tokens + 12 * layers * width * pairs of a token and one that it sees
    + 6 * weights of the head * trained positions.
    """
    config = model.config
    rows = {id(table) for table in vocabulary_weights(model)}
    weights = sum(weight.numel() for weight in model.parameters() if id(weight) not in rows)
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids) if position_ids is None else position_ids
    seen = float(positions.sum()) + positions.numel()
    trained = int((labels[:, 1:] != IGNORED).sum())
    attention = 12 * config.num_hidden_layers * config.hidden_size * seen
    return 6 * weights * input_ids.numel() + attention + 6 * model.get_output_embeddings().weight.numel() * trained


def matrix_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Measure floating-point operations a second of matrix products on a device, under the autocast in effect."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    count, seconds = 1, 0.0
    while seconds < 0.1:  # until starting them and waiting for them counts little
        count *= 2
        begin = time.perf_counter()
        for _ in range(count):
            product = left @ right
        product[0, 0].item()  # waits for the device
        seconds = time.perf_counter() - begin
    return 2 * size**3 * count / seconds
