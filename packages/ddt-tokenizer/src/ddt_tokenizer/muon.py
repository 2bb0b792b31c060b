"""Muon: momentum whose update is made orthogonal, matrix by matrix (Jordan et al. 2024), and AdamW beside it.

Shape letters: N matrices of one shape; m, n their sides.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .precision import multiplies_bf16
from .weights_file import whole

MOST = 2**26  # numbers of matrices that are made orthogonal at a time, which takes a few times their memory
A, B, C = 3.4445, -4.7750, 2.0315  # of one step of Newton-Schulz, x <- A x + B (x x^T) x + C (x x^T)^2 x


def orthogonalise(updates: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of updates [N, m, n] towards one, into about 0.7 to 1.2, by Newton-Schulz steps.

    Where the device multiplies bf16, the steps are as written above, in bf16. Elsewhere bf16 is emulated, up to a
    hundred times slower than fp32, which `torch.optim.Muon` accepts; here the steps are then taken in fp32 and in Gram
    form: with G = x x^T and q(G) = A + B G + C G^2 a step is x <- q(G) x, G <- q(G) G q(G), so that all work is on the
    shorter side and only the product of all q meets x. That form is for fp32 alone: in bf16, on gradients as they are
    (condition 1e4 and more), it reaches singular values in the thousands.
    """
    x = updates.mT if updates.shape[1] > updates.shape[2] else updates
    in_bf16 = multiplies_bf16(updates.device)
    x = x.bfloat16() if in_bf16 else x.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = _steps(x, iterations) if in_bf16 else _gram_steps(x, iterations)
    return (x.mT if updates.shape[1] > updates.shape[2] else x).to(updates.dtype)


def _steps(x: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def _gram_steps(x: Tensor, iterations: int) -> Tensor:
    gram = x @ x.mT
    q = product = _polynomial(gram)
    for _ in range(iterations - 1):
        gram = q @ (gram @ q)
        q = _polynomial(gram)
        product = q @ product
    return product @ x


def _polynomial(gram: Tensor) -> Tensor:
    """Compute q(G) of gram [N, m, m]."""
    value = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
    value.diagonal(dim1=1, dim2=2).add_(A)
    return value


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, updates scaled to the size of AdamW's (arXiv:2502.16982).

    Args:
        matrices: 2-D weights inside transformer blocks, or groups of them with rates of their own.
        weight_decay: Share of the rate by which weights shrink in a step.
    """

    def __init__(self, matrices: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every matrix that has a gradient; those of one shape are made orthogonal in batches.

        Of a sharded one (FSDP2) each rank gathers the whole update, and keeps its share of the result.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                at_once = max(1, MOST // shape.numel())
                rate = 0.2 * math.sqrt(max(shape)) * group["lr"]
                for some in (matrices[i : i + at_once] for i in range(0, len(matrices), at_once)):
                    updates = [whole(update) for update in self._nesterov(some, group["momentum"])]
                    updates = orthogonalise(torch.stack(updates)).unbind()
                    torch._foreach_mul_(some, 1 - group["lr"] * group["weight_decay"])
                    torch._foreach_add_(some, list(map(_shared_as, updates, some)), alpha=-rate)
        return loss

    def _nesterov(self, matrices: list[nn.Parameter], momentum: float) -> list[Tensor]:
        gradients = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        averages = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, averages, momentum)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on some weights and AdamW on others, stepping as one optimizer.

    Example:
        >>> layer = nn.Linear(4, 8)
        >>> optimizer = MuonAdamW(Muon([layer.weight], lr=1e-3), torch.optim.AdamW([layer.bias], lr=1e-3))
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW):
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        # Both halves have the dictionaries of the whole, so that a schedule reaches them, and what is saved is theirs.
        of_muon = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:of_muon], self.param_groups[of_muon:]
        self.muon.state = self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Run the closure once, then step both."""
        loss = self.muon.step(closure)
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of `state_dict`, or what versions before 0.2 wrote: {"muon": ..., "adamw": ...}."""
        super().load_state_dict(_joined(**state_dict) if "muon" in state_dict else state_dict)


def _joined(muon: dict[str, Any], adamw: dict[str, Any]) -> dict[str, Any]:
    """Make one state of two, the numbers of the second's weights after those of the first."""
    first = sum(len(group["params"]) for group in muon["param_groups"])
    groups = [{"weight_decay": 0.0, **group} for group in muon["param_groups"]]  # ddt-tokenizer 0.1.0 wrote none
    groups += [{**group, "params": [first + i for i in group["params"]]} for group in adamw["param_groups"]]
    return {
        "state": {**muon["state"], **{first + i: each for i, each in adamw["state"].items()}},
        "param_groups": groups,
    }


def _shared_as(whole: Tensor, matrix: Tensor) -> Tensor:
    """Return what a rank has of a matrix that all of them know, if it has a share of it."""
    if not hasattr(matrix, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor  # not in every build of torch

    return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
