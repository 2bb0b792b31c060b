"""Joint attention: image patches and queries keep their own weights and share one attention map.

Shape letters: B batch, L positions of one stream, S positions of all, H heads, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over [B, H, S, D/H].

    In bf16 on a CPU the fused kernel is up to four times slower than the formula at short sequences.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


class DualStreamBlock(nn.Module):
    """Joint attention over two streams, then an MLP for each (the encoder block of DDT, arXiv:2504.14666).

    Args:
        width: Of both streams, D.
        num_heads: H.
        mlp_ratio: Hidden width of the MLPs over D.
        updates_image: False in the last block, whose image stream nobody reads.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, updates_image: bool = True):
        super().__init__()
        self.num_heads = num_heads
        hidden = int(width * mlp_ratio)
        self.updated = (0, 1) if updates_image else (1,)
        self.norm = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.q_norm = nn.ModuleList(nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.k_norm = nn.ModuleList(nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.out = nn.ModuleDict({str(i): nn.Linear(width, width) for i in self.updated})
        self.mlp_norm = nn.ModuleDict({str(i): nn.LayerNorm(width, eps=1e-6) for i in self.updated})
        self.mlp = nn.ModuleDict(
            {
                str(i): nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
                for i in self.updated
            }
        )

    def forward(self, image: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Update the two streams [B, L, D]."""
        streams = [image, queries]
        parts = []
        for i, x in enumerate(streams):
            q, k, v = self.qkv[i](self.norm[i](x)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
            parts.append((self.q_norm[i](q).to(v.dtype), self.k_norm[i](k).to(v.dtype), v))
        q, k, v = (torch.cat(part, dim=1).transpose(1, 2) for part in zip(*parts, strict=True))
        mixed = attend(q, k, v).transpose(1, 2).flatten(2).split([x.shape[1] for x in streams], dim=1)
        for i in self.updated:
            x = streams[i] + self.out[str(i)](mixed[i])
            streams[i] = x + self.mlp[str(i)](self.mlp_norm[str(i)](x))
        return streams[0], streams[1]
