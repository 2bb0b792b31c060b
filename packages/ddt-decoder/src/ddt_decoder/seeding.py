# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/seeding.py
"""Randomness of a training step: a function of (seed, step, rank), so that a resumed run continues exactly."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def seed_step(module: "LightningModule", batch_idx: int) -> None:
    """Seed torch for a batch of a module with a `seed`, and for which batch of an accumulated step it is."""
    batches = module.trainer.accumulate_grad_batches
    step = module.global_step * batches + batch_idx % batches
    torch.manual_seed((module.seed * 1_000_003 + step + module.global_rank * 1_000_000_007) % 2**63)
