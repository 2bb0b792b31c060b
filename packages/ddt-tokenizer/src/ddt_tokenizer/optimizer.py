"""Muon for matrices, AdamW for the rest, and the learning-rate schedule."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from ddt_tokenizer.learning_rate import warmup_stable_decay
from ddt_tokenizer.limits import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, Share, check_settings
from ddt_tokenizer.muon import Muon, MuonAdamW


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and schedule of a run."""

    steps: PositiveInt = 1000
    lr: PositiveFloat = 2e-3  # Muon's updates are scaled to the size of AdamW's, so one value serves both
    optimizer: Literal["muon", "adamw"] = "muon"
    betas: tuple[Decay, Decay] = (0.9, 0.98)  # of AdamW
    warmup_steps: PositiveInt = 50
    cooldown_share: Share = 0.5  # last share of the run, in which the rate falls linearly to zero
    # Other rates for some weights: pattern of names -> rate, such as {"decoder.network.blocks.*.0.*": 1e-5}. The first
    # pattern that fits a name counts; names begin with "tokenizer." or "decoder.".
    rates: dict[str, NonNegativeFloat] = field(default_factory=dict)

    def __post_init__(self):
        check_settings(self)

    def factor(self, step: int) -> float:
        """Compute the learning rate at a step 0..steps-1 as a share of the highest."""
        return warmup_stable_decay(step, self.steps, self.warmup_steps, self.cooldown_share)

    def rate(self, name: str) -> float:
        """Return the highest learning rate of the weight of that name."""
        return next((rate for pattern, rate in self.rates.items() if fnmatchcase(name, pattern)), self.lr)


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Optimise the weights that need gradients: with AdamW, or with Muon the matrices inside transformer blocks.

    Raises:
        ValueError: If a pattern of `rates` fits no weight, or Muon finds no matrix.

    Example:
        >>> layer = nn.Linear(4, 8)
        >>> optimizer = build_optimizer(layer.named_parameters(), OptimizerConfig(rates={"*.bias": 0.1, "bias": 1e-5}))
        Traceback (most recent call last):
        ValueError: rates: pattern '*.bias' fits no weight that is trained (names: weight, bias)
    """
    trained = {name: p for name, p in named if p.requires_grad}
    for pattern in config.rates:
        if not any(fnmatchcase(name, pattern) for name in trained):
            names = ", ".join(list(trained)[:4])
            raise ValueError(f"rates: pattern {pattern!r} fits no weight that is trained (names: {names})")
    if config.optimizer == "adamw":
        adamw = _adamw(trained, config)
        # Lightning refuses to clip gradients that an optimizer may unscale itself, in bf16 too, where none are scaled.
        adamw._step_supports_amp_scaling = False
        return adamw
    matrices = {
        name: p for name, p in trained.items() if p.ndim == 2 and "blocks." in name and "modulation" not in name
    }
    others = {name: p for name, p in trained.items() if name not in matrices}
    if not matrices:
        raise ValueError("optimizer=muon needs matrices inside blocks, and none is trained; set optimizer=adamw")
    return MuonAdamW(Muon(_groups(matrices, config), config.lr), _adamw(others, config))


def scheduled(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> dict[str, Any]:
    """Return what Lightning's `configure_optimizers` does: the optimizer, and its rate by steps of the config."""
    optimizer = build_optimizer(named, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _adamw(named: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(_groups(named, config), config.lr, config.betas, weight_decay=0.0, fused=True)


def _groups(named: dict[str, nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in named.items():
        groups.setdefault(config.rate(name), []).append(p)
    return [{"params": params, "lr": rate} for rate, params in groups.items()]
