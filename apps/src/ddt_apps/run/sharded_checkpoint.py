"""`last.ckpt` of a sharded model: a folder into which each process writes its share, and nobody gathers it.

What is called `last.ckpt` is a link, so that another folder takes its place in one step.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning
    import torch

SHARDS = ".shards-{}"  # what links lead to
REST = "meta.pt"  # what no process has a share of; Lightning's name for it


def save_sharded(trainer: "lightning.Trainer", link: Path) -> None:
    """Write what all processes hold, then let `link` lead there."""
    for optimizer in trainer.optimizers:
        _complete(optimizer)
    folder = next(path for i in range(2**31) if not (path := link.with_name(SHARDS.format(i))).exists())
    trainer.save_checkpoint(folder)
    if trainer.is_global_zero:
        with (folder / REST).open("rb") as rest:  # torch does this for the shards
            os.fsync(rest.fileno())
        beside = link.with_name(f".{link.name}.part")
        beside.unlink(missing_ok=True)
        beside.symlink_to(folder.name)
        os.replace(beside, link)
        remove_shards(link.parent)
    trainer.strategy.barrier()  # before another one looks for a folder that is free


def _complete(optimizer: "torch.optim.Optimizer") -> None:
    """Add the state of their beginning for weights that were not stepped yet: a checkpoint is read for all of them."""
    import torch

    for group in optimizer.param_groups:
        for weight in group["params"]:
            if optimizer.state.get(weight):
                continue
            if "momentum" in group:  # Muon
                optimizer.state[weight] = {"momentum": torch.zeros_like(weight)}
            else:
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}


def remove_shards(run: Path) -> None:
    """Remove the folders of shards to which no link leads."""
    known = {link.resolve() for link in run.glob("*.ckpt") if link.is_symlink()}
    for folder in run.glob(SHARDS.format("*")):
        if folder.resolve() not in known:
            shutil.rmtree(folder)


def read_sharded(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Read what is not sharded, and the shapes of the weights by name.

    Raises:
        ValueError: If a file is cut off; FileNotFoundError if one is gone.
    """
    import torch
    from torch.distributed.checkpoint import FileSystemReader

    found = torch.load(folder / REST, map_location="cpu", weights_only=True)
    known = FileSystemReader(folder).read_metadata()
    for part in known.storage_data.values():
        if (folder / part.relative_path).stat().st_size < part.offset + part.length:
            raise ValueError(f"{part.relative_path} is cut off")
    named, start = known.state_dict_metadata, "state_dict."
    shapes = {name.removeprefix(start): tuple(each.size) for name, each in named.items() if name.startswith(start)}
    return found, shapes
