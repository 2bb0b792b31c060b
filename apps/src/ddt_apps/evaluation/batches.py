"""Rows of an evaluation, made some at a time under a progress bar."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.run.progress import StageProgress
from ddt_data import Judge, Seen

BATCH = 64  # pictures at a time; no figure depends on it


def in_batches(stage: str, count: int, make: Callable[[slice], Any]) -> Any:
    """Make `count` rows, `BATCH` at a time under a progress bar; arrays and tensors are joined, lists too."""
    parts = []
    with StageProgress(stage, count) as progress, torch.inference_mode():
        for first in range(0, count, BATCH):
            rows = slice(first, min(first + BATCH, count))
            parts.append(make(rows))
            progress.update(rows.stop)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


def read(judge: Judge, pictures: np.ndarray, canvas: int) -> list[list[Seen]]:
    """List what a judge sees in each picture, uint8 [N, H, W, 3]."""
    return in_batches("judge", len(pictures), lambda rows: judge.read(pictures[rows], canvas))
