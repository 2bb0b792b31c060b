"""Rectified flow with token visibility: the path, the training loss and the samplers.

t=0 is clean, t=1 is noise, x_t = t * noise + (1 - t) * x (arXiv:2209.03003).
Shape letters: B batch, K tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddt_decoder.limits import FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, Share, check_settings
from ddt_decoder.schedule import TokenSchedule
from ddt_decoder.seeding import Rows

# How `denoise` takes a step. "heun" is of second order and calls the network twice, "ddpm" renoises the clean estimate.
Sampler = Literal["euler", "heun", "ddpm"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """What the network predicts, and how noise levels and visible tokens are drawn in training."""

    prediction: Literal["x0", "velocity"] = "x0"  # what the loss compares
    time_shift: PositiveFloat = 1.0  # s in t <- s t / (1 + (s - 1) t); above 1 favours noise
    full_noise_share: Share = 0.0  # share of samples at t=1, where one step is the whole decode
    coarse_share: Share = 0.0  # share that sees only its n coarsest tokens, n uniform in 1..K (nested dropout)
    # Share of a batch that is drawn in one step from noise and its n coarsest tokens, one n for each of `prefix_groups`
    # groups, so that no other token is computed (nested dropout, arXiv:1402.0915; FlexTok, arXiv:2502.13967).
    prefix_share: Share = 0.0
    prefix_groups: PositiveInt = 2
    prefix_counts: Literal["powers", "uniform"] = "powers"  # n: powers of two below K, or any of 1..K
    all_share: Share = 0.0  # share that sees all tokens at any noise, not V_1..V_k(t): for `decode(all_tokens=True)`
    token_dropout: Share = 0.1  # share that sees no token, for guidance
    network_output: Literal["x0", "velocity"] = "x0"  # what the network's raw output means (SD3, Selftok: velocity)
    # Mean, std of logit t in training; None draws t uniformly.
    logit_normal: tuple[FiniteFloat, PositiveFloat] | None = None
    # Share of noisy images that are made of the network's own one-step estimate instead of the image, so that training
    # knows the states which a decode of many steps meets (after DREAM, arXiv:2312.00210).
    own_estimates: Share = 0.0
    time_power: NonNegativeFloat = 0.0  # p in |x0_hat - x0|^2 / t^p, t at least 0.1
    reweight_gradients: bool = False  # scale the gradient of token i by 1 / P(i is visible); the loss stays the same

    def __post_init__(self):
        check_settings(self)
        if self.own_estimates and self.prediction != "x0":
            raise ValueError(f"own_estimates ({self.own_estimates}) needs prediction=x0, not {self.prediction}")
        if self.prefix_share and (self.prediction, self.network_output) != ("x0", "x0"):
            raise ValueError(
                f"prefix_share ({self.prefix_share}) needs prediction=x0 and network_output=x0, not {self.prediction} "
                f"and {self.network_output}: at t=1 these are the same picture but for the noise"
            )
        if self.time_power and self.prediction != "x0":
            raise ValueError(f"time_power ({self.time_power}) needs prediction=x0, not {self.prediction}")


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise (shift > 1) and keep 0 and 1 (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mix clean x and noise [B, ...] at times t [B]."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return t * noise + (1 - t) * x


def draw_times(rows: Rows, config: FlowConfig) -> Tensor:
    """Draw unshifted training times [B] in [0, 1): uniform or logit-normal, but for the share at exactly t=1."""
    if config.logit_normal is None:
        t = rows.uniform()
    else:
        mean, std = config.logit_normal
        t = torch.sigmoid(mean + std * rows.normal())
    return torch.where(rows.uniform() < config.full_noise_share, 1.0, t)


def draw_visible(rows: Rows, t: Tensor, schedule: TokenSchedule, config: FlowConfig) -> Tensor:
    """Draw the tokens that each row sees at unshifted times t [B]: bool [B, K].

    The schedule gives V_1..V_k(t), `all_share` all. A share sees only its coarse end, so that a decode from the first
    tokens that an LLM writes is in the training distribution; a share sees nothing. (Selftok drops no tokens at exactly
    t=1, which its t ~ U[0, 1) never draws. Here `full_noise_share` does, and guidance needs the network to know t=1
    without tokens.)
    """
    visible = schedule.visible(t)
    num_tokens = schedule.num_tokens
    if config.all_share:
        visible = visible | (rows.uniform() < config.all_share)[:, None]
    kept = torch.where(rows.uniform() < config.coarse_share, rows.integers(1, num_tokens + 1), num_tokens)
    kept = torch.where(rows.uniform() < config.token_dropout, 0, kept)
    return visible & coarsest(kept, num_tokens)


def draw_prefixes(num_tokens: int, config: FlowConfig) -> list[int]:
    """Draw how many of the coarsest of K tokens each group sees: `prefix_groups` numbers.

    Example:
        >>> set(draw_prefixes(64, FlowConfig(prefix_groups=40))) <= {1, 2, 4, 8, 16, 32}
        True
    """
    choices = prefix_choices(num_tokens, config)
    return [choices[i] for i in torch.randint(len(choices), (config.prefix_groups,)).tolist()]


def prefix_choices(num_tokens: int, config: FlowConfig) -> list[int]:
    """List what `draw_prefixes` draws from, each as likely: the powers of two below K, or 1..K."""
    if config.prefix_counts == "uniform":
        return list(range(1, num_tokens + 1))
    return [2**power for power in range(max(1, (num_tokens - 1).bit_length()))]


def coarsest(count: Tensor, num_tokens: int) -> Tensor:
    """Mark the `count` [B] coarsest tokens, those of the highest index: bool [B, K]."""
    return torch.arange(num_tokens, device=count.device) >= num_tokens - count[:, None]


def visible_share(schedule: TokenSchedule, config: FlowConfig) -> Tensor:
    """Compute how often each token is visible in training, dropout of all tokens aside: float32 [K], on the CPU.

    With t ~ U(0, 1) this is 1 - start_time(i), so the last tokens are rarely seen: 1.25 % of the time for the last one
    of Selftok-512.
    """
    later = 1 - schedule.start_times()
    if config.logit_normal is not None:
        mean, std = config.logit_normal
        later = torch.special.ndtr((later.logit() + mean) / std)  # P(t >= start), by the symmetry of Phi
    always = config.full_noise_share + (1 - config.full_noise_share) * config.all_share
    by_time = always + (1 - always) * later
    index = torch.arange(schedule.num_tokens, dtype=torch.float64)
    kept = 1 - config.coarse_share + config.coarse_share * (index + 1) / schedule.num_tokens
    counts = torch.tensor(prefix_choices(schedule.num_tokens, config))
    nested = (index[:, None] >= schedule.num_tokens - counts).double().mean(dim=1)
    return (config.prefix_share * nested + (1 - config.prefix_share) * by_time * kept).float()


def scale_gradient(tokens: Tensor, factor: Tensor) -> Tensor:
    """Return tokens [B, K, D] to the bit; their gradient is multiplied by factor [K]."""
    constant = tokens.detach()
    return constant + (tokens - constant) * factor[:, None]


def denoise(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    num_steps: int,
    time_shift: float = 1.0,
    sampler: Sampler = "euler",
    fresh_noise: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Follow the flow from noise (t=1) to an image (t=0), yielding the state after each step.

    Args:
        velocity: `velocity(x, t)` with x [B, ...] and the *unshifted* time t, a scalar tensor on the CPU; [B, ...].
        noise: Start [B, ...], drawn from N(0, 1).
        num_steps: Steps, >= 1. With one step the result is the network's estimate of the clean image.
        fresh_noise: Draws noise [B, ...]; needed by "ddpm".
    """
    grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).float()
    x = noise
    for step in range(num_steps):
        now, after = grid[step], grid[step + 1]
        t, s = shift_time(now, time_shift), shift_time(after, time_shift)
        v = velocity(x, now)
        if sampler == "ddpm":
            clean = x - t * v
            x = clean if step == num_steps - 1 else (1 - s) * clean + s * fresh_noise()
        else:
            if sampler == "heun" and step < num_steps - 1:
                v = (v + velocity(x + (s - t) * v, after)) / 2
            x = x + (s - t) * v
        yield x
