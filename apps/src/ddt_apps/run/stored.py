"""Weights that lie in a sharded checkpoint, and are read from there one at a time to be exported."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Stored(Tensor):
    """A tensor of a checkpoint: `full_tensor` reads it, and what is computed with has been read, and stays in memory.

    Args:
        like: Shape and dtype; it may be on the meta device.
        folder: Of the checkpoint, as torch.distributed.checkpoint writes it.
        key: Of the tensor among its weights.
        used: Where it is kept once it has been used, by all that are this tensor.
    """

    @staticmethod
    def __new__(cls, like: Tensor, *_: Any) -> Self:
        return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=torch.device("cpu"))

    def __init__(self, like: Tensor, folder: Path, key: str, used: list[Tensor]):
        self.folder, self.key, self.used = folder, key, used

    def full_tensor(self) -> Tensor:
        """Read it; of a tensor that ranks share, the method of this name gathers it."""
        from torch.distributed.checkpoint import load

        if self.used:
            return self.used[0]
        tensor = torch.empty(self.shape, dtype=self.dtype)
        load({"state_dict": {self.key: tensor}}, checkpoint_id=self.folder, no_dist=True)
        return tensor

    def use(self) -> Tensor:
        """Read it, once."""
        self.used[:] = [self.full_tensor()]
        return self.used[0]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if op is torch.ops.aten.detach.default:
            tensor = args[0]
            return cls(tensor, tensor.folder, tensor.key, tensor.used)
        out = op(*tree_map(_in_memory, args), **tree_map(_in_memory, kwargs or {}))
        return args[0] if op._schema.is_mutable else out


def _in_memory(value: Any) -> Any:
    return value.use() if isinstance(value, Stored) else value


def read_when_used(module: nn.Module, folder: Path) -> None:
    """Put what a checkpoint has of a module into the place of its weights and buffers, unread."""
    stored: dict[int, Tensor] = {}
    names = module.state_dict(keep_vars=True)
    for name, tensor in names.items():
        if id(tensor) not in stored:  # tied weights are one
            new = Stored(tensor, folder, name, [])
            stored[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
        where, _, own = name.rpartition(".")
        setattr(module.get_submodule(where), own, stored[id(tensor)])
