"""What the language model needs of a visual tokenizer."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class VisualTokenizer(Protocol):
    """What turns pictures into visual ids and back. It may also have a `fingerprint: str`, which is then compared."""

    codebook_size: int
    num_tokens: int

    def encode(self, images: Sequence[Any]) -> Tensor:
        """Turn N images (PIL, paths or tensors) into ids int64 [N, K]."""
        ...

    def decode(self, ids: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Draw ids int64 [N, K] as images float32 [N, 3, H, W] in [-1, 1].

        With `keep_tokens`, which only previews need, only so many of the coarsest ids count.
        """
        ...
