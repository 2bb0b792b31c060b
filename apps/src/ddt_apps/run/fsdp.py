"""Sharding a model over processes by FSDP2 (torch's fully_shard), so that each holds a share of it."""

from functools import partial
from typing import Any

import lightning
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from ddt_apps.run.compiling import blocks


def shard(module: lightning.LightningModule) -> None:
    """Shard weights, gradients and what an optimizer keeps; as Lightning's hook `configure_model`.

    A unit, which is whole only while it is at work, is each block of `module.networks`. All other weights make up the
    last one, whole during a training step; but for those of `module.replicated`, which each process has.
    """
    mesh = module.device_mesh["data_parallel"]
    for network in module.networks:
        for block in blocks(network):
            fully_shard(block, mesh=mesh)
    replicated = {weight for part in getattr(module, "replicated", ()) for weight in part.parameters()}
    for weight in replicated:
        weight.register_post_accumulate_grad_hook(_average)
    fully_shard(module, mesh=mesh, ignored_params=replicated)
    module.become_whole = _nothing
    for method in ("training_step", "become_whole"):
        register_fsdp_forward_method(module, method)


def _nothing() -> None:
    pass


def _average(weight: nn.Parameter) -> None:
    torch.distributed.all_reduce(weight.grad.div_(torch.distributed.get_world_size()))


class WholeBetweenSteps(lightning.Callback):
    """Shards a module when training starts; what stands between two of these in the list of callbacks may use it.

    Args:
        every: Steps between two looks at the model.
    """

    def __init__(self, module: lightning.LightningModule, every: int):
        module.configure_model = partial(shard, module)
        self.every, self.whole = every, False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not self.whole:  # units get their memory now: what they got in inference mode, no step could write into
            for unit in [part for part in module.modules() if isinstance(part, FSDPModule)]:
                unit.unshard()
                unit.reshard()
        self._turn(module)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.whole or step % self.every == 0 or step == trainer.max_steps:
            self._turn(module)

    @torch.no_grad()
    def _turn(self, module: nn.Module) -> None:
        if self.whole:
            module.reshard()
        else:
            module.become_whole()
        self.whole = not self.whole
