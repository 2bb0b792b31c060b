"""Joint attention: image patches and tokens keep their own weights and share one attention map.

Shape letters: B batch, L positions of one stream, K tokens, S positions of both streams, H heads, D width.
"""

import torch
from torch import Tensor, nn

from ddt_decoder.attend import attend

PATCHES, TOKENS = 0, 1  # the streams, as indices of the layers that each has of its own


class JointAttention(nn.Module):
    """Self-attention over patches and tokens together (SD3, arXiv:2403.03206).

    Args:
        num_outputs: 2, or 1 where nobody reads the tokens' output (SD3's last block, "pre-only").
        qk_norm: RMSNorm of queries and keys over a head.
        tokens_see_patches: If not, tokens attend to visible tokens alone.
    """

    def __init__(
        self, width: int, num_heads: int, num_outputs: int = 2, qk_norm: bool = True, tokens_see_patches: bool = True
    ):
        super().__init__()
        self.num_heads = num_heads
        self.tokens_see_patches = tokens_see_patches
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        head = width // num_heads
        self.q_norm = nn.ModuleList(nn.RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2))
        self.k_norm = nn.ModuleList(nn.RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(num_outputs))

    def forward(self, patches: Tensor, tokens: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Mix the streams.

        Args:
            patches, tokens: [B, L, D], seen by all (but see `tokens_see_patches`), and [B, K, D].
            visible: Bool [B, K], False where nobody may attend to a token; None shows all.

        Returns:
            The first `num_outputs` of [patches, tokens].
        """
        # Queries, keys and values of both streams, one behind the other.
        parts = []
        for stream, x in ((PATCHES, patches), (TOKENS, tokens)):
            q, k, v = self.qkv[stream](x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
            parts.append((self.q_norm[stream](q).to(v.dtype), self.k_norm[stream](k).to(v.dtype), v))
        q, k, v = (torch.cat(part, dim=1).transpose(1, 2) for part in zip(*parts, strict=True))  # [B, H, S, D/H]

        # Everybody may see the patches.
        length, mask = patches.shape[1], None
        if visible is not None:
            mask = torch.cat([visible.new_ones(visible.shape[0], length), visible], dim=1)[:, None, None]

        # One attention for both streams, or another for tokens that see tokens alone.
        if self.tokens_see_patches or not tokens.shape[1]:
            mixed = list(attend(q, k, v, mask).split([length, tokens.shape[1]], dim=2))
        else:
            if visible is not None:  # a hidden token, whose output nobody reads, sees itself: a softmax needs a key
                itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=visible.device)
                visible = (visible[:, None] | itself)[:, None]
            own = attend(q[:, :, length:], k[:, :, length:], v[:, :, length:], visible)
            mixed = [attend(q[:, :, :length], k, v, mask), own]
        return [out(x.transpose(1, 2).flatten(2)) for out, x in zip(self.out, mixed, strict=False)]
