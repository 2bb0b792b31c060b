"""RendererTrainingConfig: how a renderer is trained."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RendererTrainingConfig:
    """How a renderer is trained: mean squared error of pixels + perceptual + adversarial, in two phases.

    The weights of the phases and the step between them are Selftok's; its learning rates and discriminator are unknown.
    """

    first_phase: tuple[float, float] = (0.1, 0.0)  # weights of the perceptual and of the adversarial loss
    second_phase: tuple[float, float] = (0.5, 0.5)
    second_phase_step: int = 30_000  # first step of the second phase
    lr: float = 5e-5
    discriminator_lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.99)  # of both AdamW
    warmup_steps: int = 100
    gradient_clip: float = 1.0  # largest gradient norm of the renderer
    discriminator_width: int = 64
    discriminator_depth: int = 3

    def __post_init__(self):
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be at least 1")
        if self.first_phase[1]:
            raise ValueError(
                f"first_phase ({self.first_phase}) must end in 0: the discriminator learns in the second phase only"
            )
