"""RendererTrainingConfig: how a renderer is trained."""

from dataclasses import dataclass

from ddt_decoder.limits import (
    Decay,
    Depth,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check_settings,
)


@dataclass(frozen=True, kw_only=True)
class RendererTrainingConfig:
    """How a renderer is trained: mean squared error of pixels + perceptual + adversarial, in two phases.

    The weights of the phases and the step between them are Selftok's; its learning rates and discriminator are unknown.
    """

    # Weights of the perceptual and of the adversarial loss.
    first_phase: tuple[NonNegativeFloat, NonNegativeFloat] = (0.1, 0.0)
    second_phase: tuple[NonNegativeFloat, NonNegativeFloat] = (0.5, 0.5)
    second_phase_step: NonNegativeInt = 30_000  # first step of the second phase
    # Share of a batch that is drawn from the n coarsest tokens, n a power of two below K, one for each of two groups.
    prefix_share: Share = 0.0
    lr: PositiveFloat = 5e-5
    discriminator_lr: PositiveFloat = 5e-5
    betas: tuple[Decay, Decay] = (0.9, 0.99)  # of both AdamW
    warmup_steps: PositiveInt = 100
    gradient_clip: PositiveFloat = 1.0  # largest gradient norm of the renderer
    discriminator_width: PositiveInt = 64
    discriminator_depth: Depth = 3

    def __post_init__(self):
        check_settings(self)
        if self.first_phase[1]:
            raise ValueError(
                f"first_phase ({self.first_phase}) must end in 0: the discriminator learns in the second phase only"
            )
