"""TrainingConfig: how encoder, quantizer and decoder are trained together."""

from dataclasses import dataclass, field
from typing import Literal

from ddt_tokenizer.limits import Decay, NonNegativeInt, check_settings
from ddt_tokenizer.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How encoder, quantizer and decoder are trained together."""

    # Steps before quantization starts; the codebook begins as k-means of what they learned.
    continuous_steps: NonNegativeInt = 100
    # Steps before nesting: until then a decoder with `prefix_share` or `coarse_share` sees whole sets of tokens.
    whole_steps: NonNegativeInt = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # What stays as it is: nothing, the encoder (its codebook goes on following it), the codebook (ids keep their
    # vectors while the encoder learns to use them better), or the whole tokenizer (a picture keeps its ids).
    freeze: Literal["none", "encoder", "codebook", "tokenizer"] = "none"
    ema_decay: Decay = 0.0  # of the moving average of the decoder's weights, 0 for none; Selftok has 0.9999

    def __post_init__(self):
        check_settings(self)
        if self.freeze != "none" and self.continuous_steps:
            raise ValueError(
                f"continuous_steps ({self.continuous_steps}) must be 0 with freeze={self.freeze}: what is frozen was "
                f"trained before, so there is nothing to learn continuously first"
            )
