"""MMDiT: a transformer over two streams, image patches and tokens, joined in attention (SD3, arXiv:2403.03206).

Shape letters: B batch, L patches, K tokens, D width, H heads, C channels; h, w patch grid.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MMDiTConfig:
    """Shape of the network."""

    channels: int = 3  # of the latents
    patch_size: int = 8
    width: int = 192
    depth: int = 4
    num_heads: int = 6
    token_width: int = 12  # of one token vector
    mlp_ratio: float = 4.0

    def __post_init__(self):
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width ({self.width}) must be divisible by num_heads ({self.num_heads}) and by 4")


def sincos(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed scalars of shape [...] as [..., width] cosines and sines of geometrically spaced frequencies."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_grid(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Embed an h x w grid of patches, centred on its middle, as [h * w, channels]: half rows, half columns.

    Wavelengths run from 2 to 128 patches, so that neighbours differ and the largest usual grid is told apart.
    """
    frequencies = math.pi * 64.0 ** -torch.linspace(0, 1, channels // 4, device=device)
    halves = []
    for size in (height, width):
        angles = (torch.arange(size, device=device) - (size - 1) / 2)[:, None] * frequencies
        halves.append(torch.cat([angles.cos(), angles.sin()], dim=-1))
    rows, columns = halves
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention over [B, H, S, D/H]; keys where visible [B, S] is False are not attended to.

    In bf16 on a CPU the fused kernel is up to four times slower than the formula at short sequences.
    """
    mask = None if visible is None else visible[:, None, None, :]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


class JointAttention(nn.Module):
    """Self-attention over the two streams together; each stream keeps its own weights."""

    def __init__(self, width: int, num_heads: int, num_outputs: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.q_norm = nn.ModuleList(nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.k_norm = nn.ModuleList(nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(num_outputs))

    def forward(self, streams: list[Tensor], visible: Tensor) -> list[Tensor]:
        """Mix streams of [B, L, D] and return the first `num_outputs`; `visible` bool [B, S] covers all keys."""
        queries, keys, values = [], [], []
        for x, qkv, q_norm, k_norm in zip(streams, self.qkv, self.q_norm, self.k_norm, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
            queries.append(q_norm(q).to(v.dtype))
            keys.append(k_norm(k).to(v.dtype))
            values.append(v)
        q, k, v = (torch.cat(parts, dim=1).transpose(1, 2) for parts in (queries, keys, values))
        mixed = attend(q, k, v, visible).transpose(1, 2).flatten(2)
        mixed = mixed.split([x.shape[1] for x in streams], dim=1)
        return [out(x) for out, x in zip(self.out, mixed, strict=False)]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise x [B, L, D], then scale and shift it by [B, 1, D] (adaLN, arXiv:2212.09748)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class MMDiTBlock(nn.Module):
    """Joint attention, then an MLP for each stream; both modulated by the time embedding.

    Args:
        width: Of both streams, D.
        num_heads: H.
        mlp_ratio: Hidden width of the MLPs over D.
        updates_tokens: False in the last block, whose token stream nobody reads (as in SD3).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, updates_tokens: bool = True):
        super().__init__()
        hidden, updated = int(width * mlp_ratio), 2 if updates_tokens else 1
        # Shift, scale and gate of attention, then of the MLP; of the last block's tokens only shift and scale.
        self.modulation = nn.ModuleList(nn.Linear(width, (6 if i < updated else 2) * width) for i in range(2))
        self.attention = JointAttention(width, num_heads, updated)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
            for _ in range(updated)
        )
        for i, layer in enumerate(self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            if i < updated:
                # Gates start open: closed ones (DiT) cost hundreds of steps in which no token reaches a pixel.
                layer.bias.data.unflatten(0, (6, width))[[2, 5]] = 1.0

    def forward(self, streams: list[Tensor], time: Tensor, visible: Tensor) -> list[Tensor]:
        """Update [patches [B, L, D], tokens [B, K, D]] under the time embedding [B, D]; the last block drops tokens."""
        modulation = [layer(F.silu(time))[:, None].unflatten(-1, (-1, time.shape[-1])) for layer in self.modulation]
        modulation = [m.unbind(2) for m in modulation]
        inputs = [modulate(x, m[0], m[1]) for x, m in zip(streams, modulation, strict=True)]
        updated = []
        for x, m, y, mlp in zip(streams, modulation, self.attention(inputs, visible), self.mlp, strict=False):
            x = x + m[2] * y
            updated.append(x + m[5] * mlp(modulate(x, m[3], m[4])))
        return updated


class MMDiT(nn.Module):
    """Predicts a field over latents from noisy latents, a time and the visible tokens.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        width, patch_values = config.width, config.channels * config.patch_size**2
        self.patch_in = nn.Linear(patch_values, width)
        self.token_in = nn.Linear(config.token_width, width)
        self.time_in = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            MMDiTBlock(width, config.num_heads, config.mlp_ratio, updates_tokens=i < config.depth - 1)
            for i in range(config.depth)
        )
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, patch_values)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.final_modulation.bias)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: Noisy latents [B, C, H, W]; H and W divisible by patch_size.
            t: Times [B] in [0, 1].
            tokens: Token vectors [B, K, token_width].
            visible: Bool [B, K], True where a token may be seen. Hidden tokens do not change the output.

        Returns:
            [B, C, H, W], the predicted field (what it means is the caller's choice).
        """
        p = self.config.patch_size
        batch, _, height, width = x.shape
        h, w = height // p, width // p
        patches = x.unflatten(2, (h, p)).unflatten(4, (w, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        grid = sincos_grid(h, w, self.config.width, x.device)
        order = sincos(torch.arange(tokens.shape[1], device=x.device) * 8 + 1000, self.config.width)
        streams = [self.patch_in(patches) + grid.to(x.dtype), self.token_in(tokens) + order.to(x.dtype)]
        time = self.time_in(sincos(t.float() * 1000, 256).to(x.dtype))
        seen = torch.cat([visible.new_ones(batch, h * w), visible], dim=1)
        for block in self.blocks:
            streams = block(streams, time, seen)
        shift, scale = self.final_modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        patches = self.patch_out(modulate(streams[0], shift, scale))
        return patches.unflatten(1, (h, w)).unflatten(3, (-1, p, p)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
