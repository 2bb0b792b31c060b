"""Muon for matrices, AdamW for the rest, and the learning-rate schedule."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddt_tokenizer.choices import check_choices


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule of a run."""

    steps: int = 1000
    lr: float = 2e-3  # Muon's updates are scaled to the size of AdamW's, so one value serves both
    optimizer: Literal["muon", "adamw"] = "muon"
    betas: tuple[float, float] = (0.9, 0.98)  # of AdamW
    warmup_steps: int = 50
    cooldown_share: float = 0.5  # last share of the run, in which the rate falls linearly to zero
    # Other rates for some weights: pattern of names -> rate, such as {"decoder.network.blocks.*.0.*": 1e-5}. The first
    # pattern that fits a name counts; names begin with "tokenizer." or "decoder.".
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_choices(self)
        if self.steps < 1 or self.warmup_steps < 1:
            raise ValueError(f"steps ({self.steps}) and warmup_steps ({self.warmup_steps}) must be at least 1")

    def factor(self, step: int) -> float:
        """Learning rate at a step 0..steps-1 as a share of the highest."""
        cooldown = max(1.0, self.cooldown_share * self.steps)
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / cooldown)

    def rate(self, name: str) -> float:
        """Highest learning rate of the weight of that name."""
        return next((rate for pattern, rate in self.rates.items() if fnmatchcase(name, pattern)), self.lr)


def orthogonalise(updates: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of updates [N, m, n] towards one (Newton-Schulz, coefficients of Jordan et al. 2024).

    An iteration multiplies x from the left by a polynomial q of its Gram matrix x x^T, which becomes q (x x^T) q. So
    all work is on the shorter side, and only the product of all q meets x. Works in the dtype it gets:
    `torch.optim.Muon` always works in bf16, a hundred times slower than fp32 on a CPU without bf16 instructions.
    """
    x = updates.mT if updates.shape[1] > updates.shape[2] else updates
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    q = product = _polynomial(gram)
    for _ in range(iterations - 1):
        gram = q @ (gram @ q)
        q = _polynomial(gram)
        product = q @ product
    x = product @ x
    return x.mT if updates.shape[1] > updates.shape[2] else x


def _polynomial(gram: Tensor) -> Tensor:
    """Compute a + b gram + c gram^2 for gram [N, m, m]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    value = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    value.diagonal(dim1=1, dim2=2).add_(a)
    return value


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum (Jordan et al. 2024), updates scaled to the size of AdamW's (arXiv:2502.16982).

    Args:
        matrices: 2-D weights inside transformer blocks, or groups of them with rates of their own.
        learning_rate: As for AdamW.
        momentum: Of the moving average of gradients.
    """

    def __init__(self, matrices: list[Any], learning_rate: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": learning_rate, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient; those of one shape are orthogonalised in one batch."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    by_shape[p.shape].append((p, p.grad.lerp(state["momentum"], group["momentum"])))
            for shape, pairs in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


class MuonAdamW(torch.optim.Optimizer):
    """Muon on some matrices and AdamW on all else, stepping as one.

    Args:
        matrices: For Muon; weights, or groups of them with rates of their own.
        others: For AdamW; likewise.
        config: Learning rate and betas.

    Example:
        >>> layer = nn.Linear(4, 8)
        >>> optimizer = MuonAdamW([layer.weight], [layer.bias], OptimizerConfig())
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(self, matrices: list[Any], others: list[Any], config: OptimizerConfig):
        self.muon = Muon(matrices, config.lr)
        self.adamw = torch.optim.AdamW(others, config.lr, config.betas, weight_decay=0.0, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # One list of the same dictionaries, so that a learning-rate schedule reaches both halves.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

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


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Optimise the weights that need gradients: with AdamW, or with Muon the matrices inside transformer blocks.

    Args:
        named: Weights with their names, as from `Module.named_parameters`.
        config: Optimizer, and rates by name.

    Raises:
        ValueError: A pattern of `rates` fits no weight.

    Example:
        >>> layer = nn.Linear(4, 8)
        >>> optimizer = build_optimizer(layer.named_parameters(), OptimizerConfig(rates={"*.bias": 0.1, "bias": 1e-5}))
        Traceback (most recent call last):
        ValueError: rates: pattern '*.bias' fits no weight that is trained (names: weight, bias)
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    for pattern in config.rates:
        if not any(fnmatchcase(name, pattern) for name, _ in trained):
            names = ", ".join(name for name, _ in trained[:4])
            raise ValueError(f"rates: pattern {pattern!r} fits no weight that is trained (names: {names})")
    if config.optimizer == "adamw":
        adamw = torch.optim.AdamW(_groups(trained, config), config.lr, config.betas, weight_decay=0.0, fused=True)
        # Lightning refuses to clip gradients that an optimizer may unscale itself, in bf16 too, where none are scaled.
        adamw._step_supports_amp_scaling = False
        return adamw
    inside = [p.ndim == 2 and "blocks." in name and "modulation" not in name for name, p in trained]
    matrices = [pair for pair, muon in zip(trained, inside, strict=True) if muon]
    others = [pair for pair, muon in zip(trained, inside, strict=True) if not muon]
    if not matrices:
        raise ValueError("optimizer=muon needs matrices inside blocks, and none is trained; set optimizer=adamw")
    return MuonAdamW(_groups(matrices, config), _groups(others, config), config)


def _groups(named: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group for each learning rate, in the order of appearance."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in named:
        groups.setdefault(config.rate(name), []).append(p)
    return [{"params": params, "lr": rate} for rate, params in groups.items()]
