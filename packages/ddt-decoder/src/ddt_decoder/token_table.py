"""The table ids -> vectors that every decoder carries, so that drawing needs no encoder.

Shape letters: B batch, K tokens, D token width, V codebook size.
"""

import torch
from torch import Tensor, nn


class TokenTable(nn.Module):
    """A module that owns the vectors of the ids, with any norm behind the codebook already applied.

    Args:
        num_tokens: K, of one image.
        codebook_size: V.
        token_width: D.

    Example:
        >>> TokenTable(num_tokens=4, codebook_size=8, token_width=3).embed(torch.zeros(2, 4, dtype=torch.long)).shape
        torch.Size([2, 4, 3])
    """

    def __init__(self, num_tokens: int, codebook_size: int, token_width: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.register_buffer("codebook", torch.zeros(codebook_size, token_width))
        self.tokenizer_fingerprint = ""  # of the tokenizer that the table was taken from

    def set_codebook(self, vectors: Tensor, tokenizer_fingerprint: str) -> None:
        """Take the ids -> vectors table [V, D] and the fingerprint of the tokenizer that it belongs to."""
        self.codebook.copy_(vectors)
        self.tokenizer_fingerprint = tokenizer_fingerprint

    def embed(self, ids: Tensor) -> Tensor:
        """Return the token vectors [B, K, D] of ids [B, K].

        Raises:
            ValueError: If the shape or a value does not fit this decoder.
        """
        if ids.ndim != 2 or ids.shape[1] != self.num_tokens:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; this decoder takes [B, {self.num_tokens}]")
        size = len(self.codebook)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ValueError(f"ids span {int(ids.min())}..{int(ids.max())}; the codebook has {size} entries")
        return self.codebook[ids]

    def as_tokens(self, ids: Tensor) -> Tensor:
        """Return the token vectors [B, K, D] of ids [B, K]; vectors [B, K, D] are returned as they are.

        Raises:
            ValueError: If the shape or a value does not fit this decoder.
        """
        if not ids.is_floating_point():
            return self.embed(ids)
        if ids.ndim != 3 or ids.shape[1:] != (self.num_tokens, self.codebook.shape[1]):
            wanted = f"[B, {self.num_tokens}, {self.codebook.shape[1]}]"
            raise ValueError(f"token vectors have shape {tuple(ids.shape)}; this decoder takes {wanted}")
        return ids.to(self.codebook)
