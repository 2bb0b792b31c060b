"""Optimizer and learning-rate schedule of language-model training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ddt_llm.head import vocabulary_weights
from ddt_llm.learning_rate import warmup_cosine, warmup_stable_decay
from ddt_llm.limits import (
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check_settings,
)
from ddt_llm.muon import Muon, MuonAdamW

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = "vocabulary"  # name of the parameter group of embedding and head


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, schedule and length of a run.

    Raises:
        ValueError: If a name is unknown or a value is outside its range.

    Example:
        >>> config = OptimizerConfig(steps=100, warmup_steps=10, schedule="wsd", cooldown_share=0.5)
        >>> [round(config.factor(step), 2) for step in (0, 9, 49, 75, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.02]
    """

    steps: PositiveInt  # length of the run in optimizer steps
    lr: PositiveFloat = 2e-3  # highest learning rate; Muon's updates are scaled to AdamW's, so one value serves both
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon" for matrices inside the layers, with AdamW for all else
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05  # of matrices; vectors are not decayed
    warmup_steps: NonNegativeInt = 50
    new_rows_steps: NonNegativeInt = 0  # first steps, in which only the rows of visual tokens are trained
    schedule: Literal["cosine", "wsd"] = "cosine"
    cooldown_share: Share = 0.5  # "wsd": share of the steps in which the rate falls linearly to zero

    def __post_init__(self):
        check_settings(self)

    def factor(self, step: int) -> float:
        """Compute the learning rate at a step as a share of `lr`."""
        if self.schedule == "cosine":
            return warmup_cosine(step, self.steps, self.warmup_steps)
        return warmup_stable_decay(step, self.steps, self.warmup_steps, self.cooldown_share)


def build_optimizer(model: "PreTrainedModel", config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build AdamW with decay on matrices only, or Muon on the matrices inside the layers and AdamW on the rest."""
    # What a weight is: a row for each token, a row for each position, a vector, or a matrix inside a layer.
    rows = {id(weight) for weight in vocabulary_weights(model)}
    positions = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - rows
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    tables = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) in rows]
    others = [parameter for parameter in trained if parameter.ndim > 2 or id(parameter) in positions]
    hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in rows | positions]

    # AdamW's groups; with "adamw" it has the matrices inside the layers too.
    decay = config.weight_decay
    groups = [
        {"params": others, "weight_decay": decay},
        {"params": tables, "weight_decay": decay, "name": VOCABULARY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        groups[0]["params"] = hidden + others
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, config.lr, config.betas, fused=True)
    # Lightning refuses to clip gradients that an optimizer may unscale itself, in bf16 too, where none are scaled.
    adamw._step_supports_amp_scaling = False
    return adamw if config.optimizer == "adamw" else MuonAdamW(Muon(hidden, config.lr, config.weight_decay), adamw)
