"""What denoising is trained on: tokens of a span taken away, or moved to codes nearby.

Time t runs from 0, where nothing is known, to 1, where everything is.

Shape letters: B rows, N positions of a span, V codes, D width of a code vector.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from ddt_llm.limits import PositiveFloat, check_settings


def shifted(time: Tensor, shift: float) -> Tensor:
    """Move times [...] in 0 to 1: x / (x + shift (1 - x)); above 1 less is known early on.

    Of what is not known, u = 1 - x, that is s u / (1 + (s - 1) u), as LaViDa has it (arXiv:2505.16839).

    Example:
        >>> shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist()
        [0.0, 0.25, 1.0]
    """
    return time / (time + shift * (1 - time))


def known_at(time: Tensor, uniform: Tensor) -> Tensor:
    """Find which tokens are known at `time` [B, 1]: bool [B, N], for `uniform` [B, N] in 0 to 1.

    At least one is not, the last to be known: else there would be nothing to learn. So with `time` drawn uniformly,
    each count from 1 to N is unknown as often as any other.

    Example:
        >>> known_at(torch.tensor([[0.2], [1.0]]), torch.tensor([[0.2, 0.8], [0.2, 0.8]])).tolist()
        [[False, False], [True, False]]
    """
    return uniform < time * uniform.amax(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class MetricPath:
    """Probability path over codes by their distance (kinetic-optimal discrete flow; FUDOKI, arXiv:2505.20147).

    p_t(x | x1) = softmax(-beta(t) d(x, x1)) with beta(t) = c (t / (1 - t))^a: uniform at t = 0, all at x1 at t = 1.
    d is the squared distance of code vectors, over its mean. A token may change many times, so errors are mended.

    Example:
        >>> path = MetricPath()
        >>> vectors = torch.tensor([[0.0], [1.0], [3.0]])
        >>> [round(p, 2) for p in path.probabilities(torch.tensor([0.5]), torch.tensor([0]), vectors)[0].tolist()]
        [0.72, 0.28, 0.0]
    """

    c: PositiveFloat = 3.0  # how soon codes are near their targets
    a: Annotated[float, Interval(gt=0, le=2)] = 0.9  # below 1 sooner at first, and later at last

    def __post_init__(self):
        check_settings(self)

    def beta(self, time: Tensor) -> Tensor:
        """Compute beta of times [...] in 0 to 1."""
        return self.c * (time / (1 - time).clamp(min=1e-6)).pow(self.a)

    def beta_rate(self, time: Tensor) -> Tensor:
        """Compute the derivative of beta."""
        left = (1 - time).clamp(min=1e-6)
        return self.c * self.a * (time.clamp(min=1e-6) / left).pow(self.a - 1) / left.square()

    def probabilities(self, time: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Compute p_t [..., V] of codes, for times and targets int64 [...] and vectors [V, D]."""
        return (-self.beta(time)[..., None] * distances(targets, vectors)).softmax(-1)

    def jump(
        self, time: Tensor, step: float, tokens: Tensor, targets: Tensor, vectors: Tensor, uniform: Tensor
    ) -> Tensor:
        """Take an Euler step of the jump process from `time` to `time` + `step`: tokens int64 [B, N].

        The rate of a jump to x is p_t(x | x1) beta'(t) relu(d(x_t, x1) - d(x, x1)): only towards the target. The chance
        to stay is exp(-rates * step), as their sampler has it.

        Args:
            time: [B, N] in 0 to 1.
            tokens, targets: x_t, and the x1 that is believed in, int64 [B, N].
            uniform: [B, N, 2] in 0 to 1: whether it jumps, and where to.
        """
        d = distances(targets, vectors)
        closer = (d.gather(-1, tokens[..., None]) - d).relu()
        rates = self.probabilities(time, targets, vectors) * self.beta_rate(time)[..., None] * closer
        total = rates.sum(-1)
        cumulative = rates.cumsum(-1)
        where = torch.searchsorted(cumulative, (uniform[..., 1:] * (1 - 1e-6) * cumulative[..., -1:]), right=True)[
            ..., 0
        ]
        jumps = uniform[..., 0] < 1 - torch.exp(-total * step)
        return torch.where(jumps, where.clamp(max=len(vectors) - 1), tokens)


def distances(targets: Tensor, vectors: Tensor) -> Tensor:
    """Compute squared distances [..., V] from the vectors of targets int64 [...] to all [V, D], over their mean.

    Example:
        >>> distances(torch.tensor([0]), torch.tensor([[0.0], [2.0]])).tolist()
        [[0.0, 2.0]]
    """
    squares = vectors.square().sum(-1)
    mean = 2 * (squares.mean() - vectors.mean(0).square().sum()).clamp(min=1e-12)
    own = vectors[targets]
    return ((squares[targets][..., None] + squares - 2 * own @ vectors.T) / mean).clamp(min=0)
