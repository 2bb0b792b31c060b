"""Settings of GRPO."""

from dataclasses import dataclass
from typing import Literal

from ddt_llm.limits import NonNegativeFloat, PositiveFloat, PositiveInt, check_settings


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """How answers are drawn, compared and learned from.

    Raises:
        ValueError: If a value is outside its range, or a group is one answer.
    """

    group: PositiveInt = 8  # answers of a prompt, which are compared with one another
    updates: PositiveInt = 1  # steps taken on the same answers
    clip_low: NonNegativeFloat = 0.2  # a token's ratio counts down to 1 - clip_low ...
    clip_high: NonNegativeFloat = 0.28  # ... and up to 1 + clip_high, which is more in DAPO (arXiv:2503.14476)
    kl: NonNegativeFloat = 0.02  # weight of the divergence from the model as it was at the start
    # What an advantage is divided by: the spread of its group's rewards, or nothing (Dr. GRPO, arXiv:2503.20783).
    normalize: Literal["group", "none"] = "group"
    guidance: NonNegativeFloat = 1.0  # of drawing; what is learned is then the guided distribution
    temperature: PositiveFloat = 1.0  # of drawing

    def __post_init__(self):
        check_settings(self)
        if self.group < 2:
            raise ValueError(f"group ({self.group}) must be at least 2: answers are compared with one another")
