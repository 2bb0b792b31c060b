"""A guard that stops a run before numbers that are not finite reach its weights."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class NaNGuard(Callback):
    """Stops before a gradient that is not finite reaches the weights, and saves the state from before that step.

    A non-finite loss gives such a gradient, and of several processes all stop. What the codebook took from its batches
    is undone. The checkpoint before goes to `before.ckpt`: steps since then may have spoiled the weights, and a run
    that goes on with other rates begins there. Not for fp16 with loss scaling, where gradients overflow as a rule.

    Args:
        checkpoint: File that `save_checkpoint` writes.
        save_checkpoint: See `ddt_apps.run.folder.Run.save_checkpoint`.
        mendable: Settings that the run can be continued with other values of.

    Raises:
        ValueError: If a gradient is not finite; names the step and the weight.
    """

    def __init__(self, checkpoint: Path, save_checkpoint: Callable[[Trainer], None], mendable: tuple[str, ...] = ()):
        self.checkpoint, self.save_checkpoint, self.mendable = checkpoint, save_checkpoint, mendable
        self.before: dict[str, Tensor] = {}  # buffers as they were before the step
        self.stopped = False  # at this step: what the checkpoint of a stopped run says
        self.alone = False  # no checkpoint was written before
        self.saved: int | None = None  # step of the newest checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "alone": self.alone}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped, self.alone = state_dict["stopped"], state_dict["alone"]

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = trainer.global_step

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.began = trainer.global_step
        if trainer.ckpt_path:
            self.saved = trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        self.stopped = self.alone = False

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = [(name, _own(p.grad)) for name, p in module.named_parameters() if p.grad is not None]
        if not named:
            return
        norms = torch.stack(torch._foreach_norm([grad for _, grad in named]))
        if trainer.strategy.reduce_boolean_decision(bool(norms.isfinite().all())):  # of sharded ones each sees a part
            return
        broken = next((name for name, grad in named if not grad.isfinite().all()), "the largest weights (overflow)")
        for name, buffer in module.named_buffers():
            buffer.copy_(self.before[name])
        self._forget_batches(trainer)
        step = trainer.global_step
        self.alone = self.saved is None or (self.stopped and self.alone)
        self.stopped = True
        if trainer.is_global_zero and self.saved is not None and self.saved < step:
            _name_again(self.checkpoint, before_of(self.checkpoint))
        way_on = f"; this run goes on with other values of {', '.join(self.mendable)}" if self.mendable else ""
        if self.saved == self.began == step:
            way_on = f"; a state that gives no finite gradient may be spoiled: delete {self.checkpoint} to start over"
        self.save_checkpoint(trainer)
        raise ValueError(
            f"the gradient of {broken} is not finite at step {step}; the state before it is in {self.checkpoint}; "
            f"lower the learning rate (now {optimizer.param_groups[0]['lr']:.3g}) or clip gradients, and look for "
            f"broken pictures{way_on}"
        )

    def _forget_batches(self, trainer: Trainer) -> None:
        """Count the earlier batches of this step as not seen, for they come again."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        seen = progress.current.completed % trainer.accumulate_grad_batches
        for count in (progress.current, progress.total):
            for name in ("ready", "started", "processed", "completed"):
                setattr(count, name, getattr(count, name) - seen)


def _own(gradient: Tensor) -> Tensor:
    """Return what this process has of a gradient."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _name_again(file: Path, other: Path) -> None:
    """Let another name lead to a file, or to what a link leads to, while the first one does as well."""
    beside = other.with_name(f".{other.name}.part")
    beside.unlink(missing_ok=True)
    if file.is_symlink():
        beside.symlink_to(os.readlink(file))
    else:
        os.link(file, beside)
    os.replace(beside, other)


def before_of(checkpoint: Path) -> Path:
    """Return where the checkpoint before that of a stopped run lies."""
    return checkpoint.with_name("before.ckpt")


def leave_out_spoiled(checkpoint: Path, found: dict[str, Any]) -> bool:
    """Put the checkpoint before in the place of one that the guard saved; return whether it was put there.

    None is put there where none was written: no more than the time between two checkpoints was spent until then.
    """
    state = found["callbacks"].get(NaNGuard.__name__, {"stopped": False})
    if state["stopped"] and before_of(checkpoint).exists():
        os.replace(before_of(checkpoint), checkpoint)
        return True
    if state["stopped"] and state["alone"]:
        checkpoint.unlink()
        return True
    return False
