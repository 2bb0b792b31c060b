"""`last.ckpt`: what a run needs to continue, written beside itself and read as data, never as code."""

import struct
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ddt_apps.run.atomic import writing
from ddt_apps.run.sharded_checkpoint import read_sharded

# What `torch.load` raises of bytes that are no checkpoint, and of code, which it does not run.
DAMAGE = (EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError)
DAMAGE += (
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    struct.error,
    torch.serialization.pickle.UnpicklingError,
)
NEEDED = {"state_dict", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers"}


def read_checkpoint(path: Path, module: LightningModule, steps: int) -> dict[str, Any]:
    """Read the checkpoint of a run of `steps` steps.

    Raises:
        ValueError: If the file is damaged or no checkpoint, is that of another model, or holds more steps.
    """
    remedy = f"delete {path} to start the run over"
    ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    try:
        if path.is_dir():
            found, theirs = read_sharded(path)
            missing = NEEDED - {"state_dict", "optimizer_states"} - set(found)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            missing = NEEDED - set(found)
            theirs = {name: tuple(tensor.shape) for name, tensor in found.get("state_dict", {}).items()}
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}); {remedy}") from error
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}; {remedy}")
    for name in [*ours, *theirs]:
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise ValueError(f"{path} is of another model: {name} is {there} in it and {here} here; {remedy}")
    if found["global_step"] > steps:
        raise ValueError(
            f"{path} holds {found['global_step']} steps already, more than the {steps} that are wanted; want "
            f"{found['global_step']} to end the run there, or only export it with: ddt export run {path.parent}"
        )
    return found


class RunCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside themselves; Lightning's own way is through `$TMPDIR`.

    Args:
        found: What `read_checkpoint` found, for the one time that it is loaded.
    """

    def __init__(self, found: dict[str, Any] | None):
        self.found = found

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with writing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        found, self.found = self.found, None
        return found
