# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/learning_rate.py
"""Learning-rate schedules, as shares of the highest rate at a step s of S."""

import math


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, cooldown_share: float) -> float:
    """Compute min((s + 1) / warm-up, 1, (S - s) / cool-down): up, level, and in the last share of steps down to zero.

    Example:
        >>> [warmup_stable_decay(step, 100, warmup_steps=10, cooldown_share=0.5) for step in (0, 9, 49, 75, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    cooldown = max(1.0, cooldown_share * steps)
    return min(1.0, (step + 1) / max(1, warmup_steps), max(0, steps - step) / cooldown)


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Compute min((s + 1) / warm-up, 1) * (1 + cos(pi s / S)) / 2.

    Example:
        >>> [round(warmup_cosine(step, 100, warmup_steps=10), 2) for step in (0, 9, 50, 100)]
        [0.1, 0.98, 0.5, 0.0]
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
