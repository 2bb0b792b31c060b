"""MMDiT: a transformer over two streams, image patches and tokens, joined in attention (SD3, arXiv:2403.03206).

Shape letters: B batch, L patches, K tokens, D width, H heads, C channels; h, w patch grid.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddt_decoder.attention import PATCHES, TOKENS, JointAttention
from ddt_decoder.limits import Depth, PositiveFloat, PositiveInt, check_settings
from ddt_decoder.patches import from_patches, to_patches
from ddt_decoder.positions import (
    at_points,
    centred_grid,
    cropped_table,
    exact_sincos,
    sincos,
    spread_points,
    token_positions,
)
from ddt_decoder.scales import Start, haar_tables, on_grid

FREQUENCIES = 256  # values in which a time or a token's position enters its embedder
SD3_SPAN = 64  # patches of SD3's training grid (1024 px), over which its table counts positions


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Shape of the network."""

    channels: PositiveInt = 3  # of the latents
    patch_size: PositiveInt = 8
    width: PositiveInt = 192
    depth: Depth = 4
    num_heads: PositiveInt = 6
    token_width: PositiveInt = 12  # of one token vector
    mlp_ratio: PositiveFloat = 4.0
    qk_norm: bool = True  # RMSNorm of queries and keys; SD3-medium has none
    token_modulation: Literal["time", "position"] = "time"  # what modulates tokens: t (SD3), or their index (Selftok)
    tokens_see_patches: bool = True  # else tokens attend to tokens alone
    open_gates: bool = True  # residual gates start at one; else at zero (adaLN-zero), as in SD3
    # Where tokens begin, as the encoder's queries do: "haar" at scales, added to all patches of their table; "grid" at
    # places, each patch looking at the nearest (a baseline); None tells them apart by their order alone.
    start: Start | None = None
    # Patches to a side of SD3's stored position table (192); None computes any grid.
    table_side: PositiveInt | None = None
    activation_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, a third more time

    def __post_init__(self):
        check_settings(self)
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width ({self.width}) must be divisible by num_heads ({self.num_heads}) and by 4")


def embedder(width: int) -> nn.Sequential:
    """Build the MLP from the frequencies of a scalar to a condition [..., D]."""
    return nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))


def centre_crop(table: Tensor, height: int, width: int) -> Tensor:
    """Take the middle h x w of a stored table of positions [S * S, D]: [h * w, D].

    Raises:
        ValueError: If the table is smaller than the grid.
    """
    side = math.isqrt(len(table))
    if max(height, width) > side:
        raise ValueError(f"a grid of {height} x {width} patches exceeds table_side ({side}); use smaller images")
    top, left = (side - height) // 2, (side - width) // 2
    return table.view(side, side, -1)[top : top + height, left : left + width].flatten(0, 1)


class Modulation(NamedTuple):
    """What a condition does to one layer of a stream, [B or 1, L or 1, D] each (adaLN, arXiv:2212.09748)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None = None  # of the residual; None where nothing is added to one


def modulate(x: Tensor, by: Modulation) -> Tensor:
    """Compute (1 + scale) * norm(x) + shift for x [B, L, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + by.scale) + by.shift


class MMDiTBlock(nn.Module):
    """Joint attention, then an MLP for each stream; the time modulates patches, the time or their place tokens.

    Without `updates_tokens`, as in the last block, whose token stream nobody reads (SD3's "pre-only"), that stream has
    no output and no MLP, and is modulated by the time.
    """

    def __init__(self, config: MMDiTConfig, updates_tokens: bool = True):
        super().__init__()
        width, hidden, updated = config.width, int(config.width * config.mlp_ratio), 2 if updates_tokens else 1
        # Shift, scale and gate of attention, then of the MLP; of the last block's tokens only shift and scale.
        self.modulation = nn.ModuleList(nn.Linear(width, (6 if i < updated else 2) * width) for i in range(2))
        self.attention = JointAttention(width, config.num_heads, updated, config.qk_norm, config.tokens_see_patches)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
            for _ in range(updated)
        )
        for i, layer in enumerate(self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            if config.open_gates and i < updated:
                # Closed gates (adaLN-zero) cost a small network hundreds of steps in which no token reaches a pixel.
                layer.bias.data.unflatten(0, (6, width))[[2, 5]] = 1.0  # those of attention and of the MLP
        self.position_in = None
        if config.token_modulation == "position" and updates_tokens:
            self.position_in = embedder(width)
            for layer in (self.position_in[0], self.position_in[2]):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self, patches: Tensor, tokens: Tensor, time: Tensor, position: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Update patches [B, L, D] and tokens [B, K, D]; the last block returns no tokens.

        `time` is the time embedding [B, D], `position` the frequencies of the tokens' positions [K, 256].
        """
        by_time = time[:, None]
        by_place = time[:, None] if self.position_in is None else self.position_in(position)[None]
        of_patches, of_tokens = self._modulations(PATCHES, by_time), self._modulations(TOKENS, by_place)
        mixed = self.attention(modulate(patches, of_patches[0]), modulate(tokens, of_tokens[0]), visible)
        patches = self._update(PATCHES, patches, mixed[PATCHES], *of_patches)
        if len(mixed) == 1:
            return patches, None
        return patches, self._update(TOKENS, tokens, mixed[TOKENS], *of_tokens)

    def _modulations(self, stream: int, condition: Tensor) -> list[Modulation]:
        """Compute the modulations of a stream in attention and in its MLP from a condition [B or 1, K or 1, D]."""
        parts = self.modulation[stream](F.silu(condition)).unflatten(-1, (-1, condition.shape[-1])).unbind(2)
        return [Modulation(*parts[i : i + 3]) for i in range(0, len(parts), 3)]

    def _update(self, stream: int, x: Tensor, mixed: Tensor, attention: Modulation, mlp: Modulation) -> Tensor:
        x = x + attention.gate * mixed
        return x + mlp.gate * self.mlp[stream](modulate(x, mlp))


class MMDiT(nn.Module):
    """Predicts a field over latents from noisy latents, a time and the visible tokens.

    Args:
        num_tokens: K. Token k stands at position 1000 + 8 k (arXiv:2505.07538), with `start="grid"` at a point of it.
        grid: Rows and columns of patches that a start is made for; other sizes stretch it.
        embeds_patches: False where only `transform` is used: there is no patch embedding and no table of positions.

    Example:
        >>> network = MMDiT(MMDiTConfig(width=32, depth=1, num_heads=2), num_tokens=4)
        >>> network(torch.zeros(2, 3, 16, 24), torch.ones(2), torch.zeros(2, 4, 12)).shape
        torch.Size([2, 3, 16, 24])
    """

    def __init__(
        self, config: MMDiTConfig, num_tokens: int, grid: tuple[int, int] | None = None, embeds_patches: bool = True
    ):
        super().__init__()
        if config.start is not None and grid is None:
            raise ValueError(f"a network with start={config.start} needs the grid of patches that it starts on")
        self.config = config
        width, patch_values = config.width, config.channels * config.patch_size**2
        self.patch_in = nn.Linear(patch_values, width) if embeds_patches else None
        self.token_in = nn.Linear(config.token_width, width)
        self.time_in = embedder(width)
        self.blocks = nn.ModuleList(
            MMDiTBlock(config, updates_tokens=i < config.depth - 1) for i in range(config.depth)
        )
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, patch_values)
        for layer in (self.final_modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        here = torch.get_default_device()
        positions = token_positions(num_tokens, torch.device("cpu"))
        # The two ways to write a position differ in the order of sines and cosines, which trained weights rely on.
        order = torch.empty(num_tokens, width)
        if not order.is_meta and config.start != "grid":
            order = (exact_sincos if config.token_modulation == "position" else sincos)(positions, width)
        elif not order.is_meta:
            order = at_points(spread_points(num_tokens, *grid), width)
            self._look_at_tokens()
        if config.start == "haar":
            self.scales = nn.Parameter(torch.empty(num_tokens, *grid))
            if not self.scales.is_meta:
                tables, deviations = haar_tables(num_tokens, *grid)
                strength = (deviations / deviations.square().mean().sqrt()).clamp(max=3)
                self.scales.data.copy_(tables * strength[:, None, None])
        self.register_buffer("token_order", order.to(here), persistent=False)
        self.register_buffer("token_frequencies", sincos(positions, FREQUENCIES).to(here), persistent=False)
        if embeds_patches and config.table_side is not None:
            side = config.table_side
            table = torch.empty(side**2, width)
            table = table if table.is_meta else cropped_table(side, side, side, width, SD3_SPAN)
            self.register_buffer("patch_table", table)

    @torch.no_grad()
    def _look_at_tokens(self) -> None:
        # Initialise W_q of the patches with W_k of the tokens: both streams begin as position embeddings, so q.k is
        # then largest for the nearest tokens. Training may leave it.
        width = self.config.width
        for block in self.blocks:
            patches, tokens = block.attention.qkv
            patches.weight[:width] = tokens.weight[width : 2 * width]

    def grid(self, height: int, width: int) -> Tensor:
        """Embed the places of h x w patches as [h * w, D]; raises as `centre_crop`."""
        if self.config.table_side is not None:
            return centre_crop(self.patch_table, height, width)
        return centred_grid(height, width, self.config.width, self.token_order.device)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, visible: Tensor | None = None, first: int = 0) -> Tensor:
        """Run the network.

        Args:
            x: Noisy latents [B, C, H, W]; H and W divisible by patch_size.
            t: Times [B] in [0, 1].
            tokens: Token vectors [B, n, token_width], those of index `first` onwards; n may be 0.
            visible: Bool [B, n], True where a token may be seen; None shows all. Hidden tokens do not change the
                output, so that leaving them out gives the same with less work.
            first: Index of the first token given.

        Returns:
            [B, C, H, W], the predicted field (what it means is the caller's choice).
        """
        size = self.config.patch_size
        grid = (x.shape[2] // size, x.shape[3] // size)
        x = x.to(self.patch_in.weight.dtype)
        patches = self.patch_in(to_patches(x, size)) + self.grid(*grid).to(x.dtype)
        return from_patches(self.transform(patches, t, tokens, visible, first, grid), grid, size)

    def transform(
        self,
        patches: Tensor,
        t: Tensor,
        tokens: Tensor,
        visible: Tensor | None = None,
        first: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the transformer on embedded patches [B, L, D], with the arguments of `forward`: [B, L, C * size^2].

        `grid` says how many rows and columns the patches have; None: as many as the start was made for.
        """
        here = slice(first, first + tokens.shape[1])
        tokens = self.token_in(tokens)
        if self.config.start == "haar":
            seen = tokens if visible is None else tokens * visible[..., None]
            scales = self.scales[here]
            patches = patches + on_grid(scales, *(grid or scales.shape[1:])).mT.to(seen.dtype) @ seen
        tokens = tokens + self.token_order[here].to(patches.dtype)
        position = self.token_frequencies[here].to(patches.dtype)
        time = self.time_in(sincos(t.float() * 1000, FREQUENCIES).to(patches.dtype))
        for block in self.blocks:
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                patches, tokens = checkpoint(block, patches, tokens, time, position, visible, use_reentrant=False)
            else:
                patches, tokens = block(patches, tokens, time, position, visible)
        final = Modulation(*self.final_modulation(F.silu(time))[:, None].chunk(2, dim=-1))
        return self.patch_out(modulate(patches, final))
