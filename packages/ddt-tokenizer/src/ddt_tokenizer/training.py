"""Joint training of encoder, quantizer and a decoder that is passed in. Needs the `[train]` extra.

Shape letters: B batch, K tokens, D token width.
"""

from functools import partial
from typing import Any, Protocol, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddt_tokenizer.optimizer import scheduled
from ddt_tokenizer.seeding import seed_step
from ddt_tokenizer.tokenizer import DDTTokenizer
from ddt_tokenizer.training_config import TrainingConfig


class TrainableDecoder(Protocol):
    """What joint training needs of a decoder, which is also an `nn.Module`.

    For the first `whole_steps` steps its loss is called with `nested=False`.
    """

    def loss(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Compute the reconstruction loss of latents [B, C, H, W] given their tokens [B, K, D]: a scalar."""


class TokenizerTraining(LightningModule):
    """Minimises the decoder's loss plus the quantizer's own.

    The randomness of a step is a function of (seed, step), so a resumed run continues exactly, and several ranks train
    as one process does on the whole batch.

    Args:
        tokenizer, decoder: Trained in place; the decoder is any module with `TrainableDecoder.loss`.
        seed: Of the noise and the revived codes.
        cached_latents: Whether batches are latents [B, C, h, w] already, not images.

    Attributes:
        networks: The parts with nearly all of the work, which a trainer may compile.
        average: With `ema_decay`, an `AveragedModel` of the decoder; `average.module` is what to export.
    """

    def __init__(
        self,
        tokenizer: DDTTokenizer,
        decoder: nn.Module,
        config: TrainingConfig,
        seed: int = 0,
        cached_latents: bool = False,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.config = config
        self.seed = seed
        self.cached_latents = cached_latents
        encoder, quantizer = tokenizer.encoder, tokenizer.quantizer
        frozen = {"encoder": [encoder, quantizer.project], "codebook": [quantizer.norm], "tokenizer": [tokenizer]}
        for part in frozen.get(config.freeze, ()):
            part.requires_grad_(False)
        self.average = None
        if config.ema_decay:
            self.average = AveragedModel(decoder, multi_avg_fn=partial(_follow, decay=config.ema_decay))
            self.average.requires_grad_(False)
        self.train(self.training)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.tokenizer.encoder, self.decoder]

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what holds a frozen codebook stays in evaluation mode, in which it follows nothing."""
        super().train(mode)
        if self.config.freeze == "codebook":
            self.tokenizer.quantizer.eval()
        elif self.config.freeze == "tokenizer":
            self.tokenizer.eval()
        return self

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Make the randomness a function of (seed, step), and of which batch of an accumulated step it is."""
        seed_step(self, batch_idx)

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss of images [B, 3, H, W], or with `cached_latents` of latents [B, C, h, w]; ids ride along."""
        latents = batch if self.cached_latents else self.tokenizer.latent_space.encode(batch)
        vectors = self.tokenizer.encoder(latents)
        ids = {}
        if self.global_step < self.config.continuous_steps:
            quantizer = self.tokenizer.quantizer
            tokens, commitment = quantizer.continuous(vectors), quantizer.prior(vectors)
        else:
            tokens, ids["ids"], commitment = self.tokenizer.quantizer(vectors)
        whole = {"nested": False} if self.global_step < self.config.whole_steps else {}
        reconstruction = self.decoder.loss(latents, tokens, **whole)
        rate = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"loss": reconstruction.detach(), "commitment": commitment.detach(), "lr": rate})
        return {"loss": reconstruction + commitment, **ids}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then let the average follow."""
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update_parameters(self.decoder)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build optimizer and schedule; the number of steps comes from the config."""
        return scheduled(self.named_parameters(), self.config.optimizer)


@torch.no_grad()
def _follow(averages: list[Tensor], weights: list[Tensor], count: Tensor, decay: float) -> None:
    """Move averages towards the weights; torch's own is a closure, which cannot be sent to other processes."""
    torch._foreach_lerp_(averages, weights, 1 - decay)
