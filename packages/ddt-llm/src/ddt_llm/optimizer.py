"""Optimizer and learning-rate schedule of language-model training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from ddt_llm.head import vocabulary_weights
from ddt_llm.muon import Muon

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = "vocabulary"  # name of the parameter group of embedding and head
Name = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, schedule and length of a run.

    >>> config = OptimizerConfig(steps=100, warmup_steps=10, schedule="wsd", cooldown_share=0.5)
    >>> [round(config.factor(step), 2) for step in (0, 9, 49, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]

    Raises:
        ValueError: for an unknown name, a run without steps or a share outside 0 to 1.
    """

    steps: int  # length of the run in optimizer steps
    lr: float = 2e-3  # highest learning rate; Muon's updates are scaled to AdamW's, so one value serves both
    optimizer: Name = "adamw"  # "muon" for matrices inside the layers, with AdamW for all else
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # of matrices; vectors are not decayed
    warmup_steps: int = 50
    new_rows_steps: int = 0  # first steps, in which only the rows of visual tokens are trained
    schedule: Schedule = "cosine"
    cooldown_share: float = 0.5  # "wsd": share of the steps in which the rate falls linearly to zero

    def __post_init__(self):
        if self.optimizer not in get_args(Name):
            raise ValueError(f"optimizer ({self.optimizer!r}) must be one of {', '.join(get_args(Name))}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule ({self.schedule!r}) must be one of {', '.join(get_args(Schedule))}")
        if self.steps < 1:
            raise ValueError(f"steps ({self.steps}) must be at least 1")
        if not 0 <= self.cooldown_share <= 1:
            raise ValueError(f"cooldown_share ({self.cooldown_share}) must lie in 0 to 1")

    def factor(self, step: int) -> float:
        """Learning rate at a step, as a share of `lr`: linear warm-up, then cosine or constant and linear to zero."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        left, cooldown = max(0, self.steps - step), self.cooldown_share * self.steps
        return warmup * (min(1.0, left / cooldown) if cooldown else 1.0)


def build_optimizer(model: "PreTrainedModel", config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with decay on matrices only, or Muon on the matrices inside the layers and AdamW on the rest."""
    rows = {id(weight) for weight in vocabulary_weights(model)}
    positions = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - rows
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    tables = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) in rows]
    others = [parameter for parameter in trained if parameter.ndim > 2 or id(parameter) in positions]
    hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in rows | positions]
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
    return adamw if config.optimizer == "adamw" else MuonAndAdamW(hidden, adamw, config)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and AdamW on different parameters, stepping as one optimizer."""

    def __init__(self, matrices: list[nn.Parameter], adamw: torch.optim.AdamW, config: OptimizerConfig):
        self.muon = Muon(matrices, config.lr, config.weight_decay)
        self.adamw = adamw
        super().__init__([*self.muon.param_groups, *adamw.param_groups], {})
        self._share_groups()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Run the closure once, then step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both states, by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both states."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()

    def _share_groups(self) -> None:
        # One list of the same dictionaries, so that a learning-rate schedule reaches both.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
