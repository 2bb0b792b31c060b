"""What reinforcement learning rewards."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Reward(Protocol):
    """Judges images that a language model drew; any function with these arguments is one.

    Example:
        >>> def dark(images, ids, prompts):
        ...     return -images.mean(dim=(1, 2, 3))
        >>> reward: Reward = dark
    """

    def __call__(self, images: Tensor | None, ids: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return a number for each image, float [B]; more is better.

        Args:
            images: Float32 [B, 3, H, W] in [-1, 1]; None where nothing draws them.
            ids: Visual ids int64 [B, K] in tokenizer order.
            prompts: What was asked for, [B].
        """
        ...
