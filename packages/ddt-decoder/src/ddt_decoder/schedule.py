"""How many tokens the decoder may see at a noise level.

Shape letters: B batch, K tokens.
"""

import torch
from torch import Tensor

ROUNDING = 1e-4  # of a token: float32 cannot hold t = 0.7, at which Selftok-512 sees 473 tokens, not 472


class TokenSchedule:
    """Piecewise-linear k(t): the visible prefix V_1..V_k(t) grows with the noise.

    From t=0 (clean) to t=1 (noise), each of `len(tokens_per_segment)` equal pieces of time reveals its number of tokens
    at a constant rate; they sum to K. One segment is the uniform schedule of DDT (arXiv:2504.14666);
    `(192, 184, 72, 48, 16)` is the one of Selftok-512 (arXiv:2505.07538).

    Raises:
        ValueError: If a segment is negative or the sum is below one.

    Example:
        >>> schedule = TokenSchedule((8,))
        >>> schedule.visible_count(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [1, 5, 8]
    """

    def __init__(self, tokens_per_segment: tuple[int, ...]):
        if not tokens_per_segment or min(tokens_per_segment) < 0 or sum(tokens_per_segment) < 1:
            raise ValueError(f"schedule ({tokens_per_segment}) must hold counts >= 0 with at least one token in all")
        self.tokens_per_segment = tuple(tokens_per_segment)
        self.num_tokens = sum(tokens_per_segment)

    def visible_count(self, t: Tensor) -> Tensor:
        """Count the visible tokens, 1..K, at unshifted times t in [0, 1] of any shape; int64, same shape as t."""
        # In float64, which not every device has, so on the CPU.
        counts = torch.tensor(self.tokens_per_segment, dtype=torch.float64)
        before = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        position = t.cpu().double().clamp(0, 1) * len(counts)
        segment = position.floor().long().clamp(max=len(counts) - 1)
        index = before[segment] + counts[segment] * (position - segment)
        # The last visible index is floor(index), so one token is visible even without noise.
        return ((index + ROUNDING).floor().long() + 1).clamp(max=self.num_tokens).to(t.device)

    def visible(self, t: Tensor) -> Tensor:
        """Mark the visible tokens at times t [B]: bool [B, K], True where a token may be seen."""
        return torch.arange(self.num_tokens, device=t.device) < self.visible_count(t)[:, None]

    def start_times(self) -> Tensor:
        """Compute the unshifted time from which on each token is visible: float64 [K], on the CPU, from 0 up."""
        pieces = [
            (segment + torch.arange(count, dtype=torch.float64) / count) / len(self.tokens_per_segment)
            for segment, count in enumerate(self.tokens_per_segment)
            if count
        ]
        times = torch.cat(pieces)
        times[0] = 0.0  # at least one token is visible, also before the first segment that reveals any
        return times


class LogitNormalSchedule(TokenSchedule):
    """k(t) = ceil(K * Phi((logit t - mean) / std)) + 1, at most K: tokens where a logit-normal sampler puts its times.

    Of the three schedules that Selftok compares (arXiv:2505.07538, table C3) the least good one.

    Mean and std are those of logit t.

    Raises:
        ValueError: If std is not above 0.

    Example:
        >>> LogitNormalSchedule(8, 0.0, 1.0).visible_count(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [1, 5, 8]
    """

    def __init__(self, num_tokens: int, mean: float, std: float):
        super().__init__((num_tokens,))
        if std <= 0:
            raise ValueError(f"std ({std}) of a logit-normal schedule must be above 0")
        self.mean, self.std = mean, std

    def visible_count(self, t: Tensor) -> Tensor:
        share = torch.special.ndtr((t.cpu().double().clamp(0, 1).logit() - self.mean) / self.std)
        return ((share * self.num_tokens).ceil().long() + 1).clamp(max=self.num_tokens).to(t.device)

    def start_times(self) -> Tensor:
        share = (torch.arange(self.num_tokens, dtype=torch.float64) - 1).clamp(min=0) / self.num_tokens
        return torch.sigmoid(torch.special.ndtri(share) * self.std + self.mean)
