"""Rectified flow with token visibility: the path, the training loss and the samplers.

t=0 is clean, t=1 is noise, x_t = t * noise + (1 - t) * x (arXiv:2209.03003).
Shape letters: B batch, K tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddt_decoder.schedule import TokenSchedule


@dataclass(frozen=True)
class FlowConfig:
    """How noise levels and visible tokens are drawn in training."""

    prediction: Literal["x0", "velocity"] = "x0"  # what the loss compares
    time_shift: float = 1.0  # s in t <- s t / (1 + (s - 1) t); above 1 favours noise
    full_noise_share: float = 0.0  # share of samples at t=1, where one step is the whole decode
    coarse_share: float = 0.0  # share that sees only its n coarsest tokens, n uniform in 1..K (nested dropout)
    token_dropout: float = 0.1  # share that sees no token, for guidance

    def __post_init__(self):
        if self.prediction not in ("x0", "velocity"):
            raise ValueError(f"prediction ({self.prediction!r}) must be x0 or velocity")
        for name in ("full_noise_share", "coarse_share", "token_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) is a share, 0 to 1")


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise (shift > 1) and keep 0 and 1 (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mix clean x and noise [B, ...] at times t [B]."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return t * noise + (1 - t) * x


def draw_times(batch: int, config: FlowConfig, device: torch.device) -> Tensor:
    """Draw unshifted training times [B], uniform but for the share at t=1."""
    t = torch.rand(batch, device=device)
    return torch.where(torch.rand(batch, device=device) < config.full_noise_share, 1.0, t)


def draw_visible(t: Tensor, schedule: TokenSchedule, config: FlowConfig) -> Tensor:
    """Draw the tokens that each sample sees at unshifted times t [B]: bool [B, K].

    The schedule gives V_1..V_k(t). A share sees only its coarse end, so that a decode from the first tokens that an
    LLM writes is in the training distribution; a share sees nothing.
    """
    visible = schedule.visible(t)
    num_tokens, device = schedule.num_tokens, t.device
    kept = torch.randint(1, num_tokens + 1, t.shape, device=device)
    kept = torch.where(torch.rand(t.shape, device=device) < config.coarse_share, kept, num_tokens)
    kept = torch.where(torch.rand(t.shape, device=device) < config.token_dropout, 0, kept)
    return visible & coarsest(kept, num_tokens)


def coarsest(count: Tensor, num_tokens: int) -> Tensor:
    """Mark the `count` [B] coarsest tokens, those of the highest index: bool [B, K]."""
    return torch.arange(num_tokens, device=count.device) >= num_tokens - count[:, None]


def denoise(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    num_steps: int,
    time_shift: float = 1.0,
    sampler: Literal["euler", "heun", "ddpm"] = "euler",
    fresh_noise: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Follow the flow from noise (t=1) to an image (t=0), yielding the state after each step.

    Args:
        velocity: `velocity(x, t)` with x [B, ...] and the *unshifted* time t, a scalar tensor; [B, ...].
        noise: Start [B, ...], drawn from N(0, 1).
        num_steps: Steps, >= 1. With one step the result is the network's estimate of the clean image.
        time_shift: As in training.
        sampler: "euler", "heun" (second order, two calls a step) or "ddpm" (renoise the clean estimate each step).
        fresh_noise: Draws noise [B, ...]; needed by "ddpm".
    """
    grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).float().to(noise.device)
    x = noise
    for step in range(num_steps):
        now, after = grid[step], grid[step + 1]
        t, s = shift_time(now, time_shift), shift_time(after, time_shift)
        v = velocity(x, now)
        if sampler == "ddpm":
            clean = x - t * v
            x = clean if step == num_steps - 1 else (1 - s) * clean + s * fresh_noise()
        else:
            moved = x + (s - t) * v
            if sampler == "heun" and step < num_steps - 1:
                moved = x + (s - t) * (v + velocity(moved, after)) / 2
            x = moved
        yield x
