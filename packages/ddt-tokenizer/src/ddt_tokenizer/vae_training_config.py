"""VAEConfig, VAETrainingConfig: a small autoencoder, and how it is trained."""

from dataclasses import dataclass, field
from typing import Literal

from ddt_tokenizer.limits import Depth, NonNegativeFloat, PositiveInt, check_settings
from ddt_tokenizer.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Shape of an `AutoencoderTiny` of diffusers."""

    channels: PositiveInt = 8  # of the latents, C
    downscale: Literal[2, 4, 8, 16] = 4  # pixels a latent, along each side
    width: PositiveInt = 32  # of all convolutions
    depth: Depth = 3  # residual blocks at the size of the latents, on either side

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class VAETrainingConfig:
    """Losses and optimizer of an autoencoder."""

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-3, optimizer="adamw"))
    noise: NonNegativeFloat = 0.05  # added to latents, in units of their deviation
    edges: NonNegativeFloat = 0.1  # weight of the error of differences between neighbouring pixels
    magnitude: NonNegativeFloat = 1e-4  # weight of the mean square of latents

    def __post_init__(self):
        check_settings(self)
