"""Joint training of encoder, quantizer and a decoder that is passed in. Needs the `[train]` extra.

Shape letters: B batch, K tokens, D token width.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ddt_tokenizer.optimizer import OptimizerConfig, build_optimizer
from ddt_tokenizer.tokenizer import DDTTokenizer


class TrainableDecoder(Protocol):
    """What joint training needs of a decoder, which is also an `nn.Module`."""

    def loss(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Reconstruction loss of latents [B, C, H, W] given their tokens [B, K, D]: a scalar."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """How encoder, quantizer and decoder are trained together."""

    continuous_steps: int = 100  # steps before quantization starts; the codebook begins as k-means of what they learned
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class TokenizerTraining(LightningModule):
    """Minimises the decoder's loss plus the quantizer's commitment.

    The randomness of a step is a function of (seed, step), so a resumed run continues exactly.

    Args:
        tokenizer: Trained in place.
        decoder: Trained in place; any module with `TrainableDecoder.loss`.
        config: Steps and optimizer.
        seed: Of the noise and the revived codes.
    """

    def __init__(self, tokenizer: DDTTokenizer, decoder: nn.Module, config: TrainingConfig, seed: int = 0):
        super().__init__()
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.config = config
        self.seed = seed

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Make the step's randomness a function of (seed, step)."""
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, latents: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch of clean latents [B, C, H, W]."""
        vectors = self.tokenizer.encoder(latents)
        if self.global_step < self.config.continuous_steps:
            tokens, commitment = self.tokenizer.quantizer.continuous(vectors), vectors.new_zeros(())
        else:
            tokens, _, commitment = self.tokenizer.quantizer(vectors)
        reconstruction = self.decoder.loss(latents, tokens)
        rate = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"loss": reconstruction.detach(), "commitment": commitment.detach(), "lr": rate})
        return reconstruction + commitment

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and schedule; the number of steps comes from the config."""
        optimizer = build_optimizer([self.tokenizer, self.decoder], self.config.optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.config.optimizer.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
