"""Encoder: image patches and K learned queries through a dual-stream transformer; the queries come out.

Shape letters: B batch, K queries, D width, C channels; h, w patch grid.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddt_tokenizer.attention import IMAGE, QUERIES, EncoderBlock, coarser, inside
from ddt_tokenizer.identity import identity
from ddt_tokenizer.limits import Depth, PositiveFloat, PositiveInt, Tokens, check_settings
from ddt_tokenizer.patches import to_patches
from ddt_tokenizer.positions import at_points, centred_grid, cropped_table, sincos, spread_points
from ddt_tokenizer.scales import Start, haar_tables, on_grid


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the encoder."""

    channels: PositiveInt = 3  # of the latents
    patch_size: PositiveInt = 8  # in latents
    width: PositiveInt = 128  # of the queries, D
    depth: Depth = 3
    num_heads: PositiveInt = 4  # of the queries
    num_tokens: Tokens = 64  # K; in spatial mode the number of patches
    mlp_ratio: PositiveFloat = 4.0
    mode: Literal["queries", "spatial"] = "queries"  # spatial: no queries, one id for each patch (a baseline)
    attention: Literal["joint", "one_way"] = "joint"  # one_way: the image takes no notice of the queries
    # Whether a query sees no finer query, and the image none, so that an id does not depend on finer ones.
    causal: bool = False
    # Whether a query sees only what lies inside its table, finer queries and patches, so that an id depends on nothing
    # else; needs start=haar.
    local: bool = False
    image_width: PositiveInt | None = None  # of the patches, None for `width`; another one needs one_way
    image_heads: PositiveInt | None = None  # of the patches, None for `num_heads`
    # How a query knows its place: by what it learns, by sines and cosines added to that, or by token-aware adaLN.
    query_position: Literal["learned", "sincos", "adaln"] = "learned"
    # Where queries begin, which a decoder's `start` has to match: "haar" at scales, from the whole picture to details;
    # "grid" at places, each looking at its patches (a baseline; in spatial mode it is the order of ids); None anywhere.
    start: Start | None = None
    # Side of the sin-cos table that a grid is cut from; None: centred, any grid.
    position_table: PositiveInt | None = None
    qk_norm: bool = True
    affine_norms: bool = True  # whether the norms inside the blocks learn a scale and a shift
    final_norm: bool = True  # whether a norm follows the last block

    def __post_init__(self):
        check_settings(self)
        for name, width, heads in (
            ("width", self.width, self.num_heads),
            ("image_width", self.patch_width, self.patch_heads),
        ):
            if width % heads or width % 4:
                raise ValueError(f"{name} ({width}) must be divisible by its heads, num_heads ({heads}), and by 4")
        if self.attention == "joint" and (self.patch_width, self.patch_heads) != (self.width, self.num_heads):
            raise ValueError(
                f"image_width ({self.patch_width}) and image_heads ({self.patch_heads}) must equal width "
                f"({self.width}) and num_heads ({self.num_heads}) in joint attention; set attention=one_way"
            )
        if self.start is not None and self.attention != "joint":
            raise ValueError(f"start ({self.start}) needs attention=joint, not {self.attention}; set it to null")
        if self.mode == "spatial" and (self.attention, self.query_position) != ("joint", "learned"):
            raise ValueError(
                f"mode=spatial has no queries; leave attention ({self.attention}) and query_position "
                f"({self.query_position}) at joint and learned"
            )
        if self.mode == "spatial" and self.causal:
            raise ValueError("mode=spatial has no queries to be causal; set causal=false")
        if self.mode == "spatial" and self.start == "haar":
            raise ValueError("mode=spatial has no queries to start at scales; set start to grid or null, not haar")

    def check_patches(self, height: int, width: int, what: str) -> None:
        """Refuse h x w patches, of what is named in words, that an encoder of this shape cannot place.

        Raises:
            ValueError: If `position_table` is smaller, or they are not the square of the spatial mode.
        """
        has = f"{what} has {height} x {width} patches"
        if self.position_table is not None and max(height, width) > self.position_table:
            raise ValueError(f"{has}, more a side than position_table ({self.position_table}); take a smaller one")
        if self.mode == "spatial" and height * width != self.num_tokens:
            raise ValueError(
                f"{has}, and mode=spatial takes only the size it was made for: num_tokens ({self.num_tokens}) must be "
                f"the number of patches ({height * width})"
            )

    def identity(self) -> dict[str, Any]:
        return identity(self, ("channels", "patch_size", "width", "depth", "num_heads", "num_tokens", "mlp_ratio"))

    @property
    def patch_width(self) -> int:
        return self.image_width or self.width

    @property
    def patch_heads(self) -> int:
        return self.image_heads or self.num_heads


class Encoder(nn.Module):
    """Latents to K vectors (DDT, arXiv:2504.14666, section 3.1; Selftok's encoder, arXiv:2505.07538).

    With `start="haar"` query k begins with sum_p T[k, p] patch_p: a table over the grid that begins as a row of its
    Haar basis, scaled to unit variance (`ddt_tokenizer.scales`; this project's docs/results/order.md).

    Args:
        grid: Rows and columns of patches that a start is made for; other sizes stretch it.

    Example:
        >>> encoder = Encoder(EncoderConfig(width=32, depth=1, num_heads=2, num_tokens=4))
        >>> encoder(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 4, 32])
        >>> encoder(torch.zeros(2, 3, 8, 32)).shape  # any size that patches fit into
        torch.Size([2, 4, 32])
    """

    def __init__(self, config: EncoderConfig, grid: tuple[int, int] | None = None):
        super().__init__()
        if config.start is not None and grid is None:
            raise ValueError(f"an encoder with start={config.start} needs the grid of patches that it starts on")
        self.config, self.start_grid = config, grid
        self.patch_in = nn.Linear(config.channels * config.patch_size**2, config.patch_width)
        widths, heads = {IMAGE: config.patch_width}, {IMAGE: config.patch_heads}
        if config.mode == "queries":
            widths[QUERIES], heads[QUERIES] = config.width, config.num_heads
            self.queries = nn.Parameter(torch.randn(config.num_tokens, config.width))
            if config.query_position != "learned":
                self.queries.data.mul_(0.02)  # their place is told elsewhere
        self.read = QUERIES if config.mode == "queries" else IMAGE
        self.blocks = nn.ModuleList(
            EncoderBlock(
                widths,
                heads,
                config.mlp_ratio,
                one_way=config.attention == "one_way",
                affine=config.affine_norms,
                qk_norm=config.qk_norm,
                modulated=config.query_position == "adaln",
                updated=tuple(widths) if i < config.depth - 1 else (self.read,),  # nobody reads the rest after the last
            )
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6) if config.final_norm else nn.Identity()
        if config.start == "haar":
            self.scales = nn.Parameter(torch.empty(config.num_tokens, *grid))
            if not self.scales.is_meta:
                tables, deviations = haar_tables(config.num_tokens, *grid)
                self.scales.data.copy_(tables / deviations[:, None, None])
                self.queries.data.mul_(0.3)  # what is the same for all pictures does not drown what differs
        if config.start == "grid" and config.mode == "queries" and not self.queries.is_meta:
            self._look_at_places(grid)

    @torch.no_grad()
    def _look_at_places(self, grid: tuple[int, int]) -> None:
        # Initialise each query with the position embedding of a point, and W_q of the queries with W_k of the patches:
        # q . k is then largest for the nearest patches. Nothing holds it there: these are ordinary weights.
        width = self.config.width
        places = at_points(spread_points(self.config.num_tokens, *grid), width).to(self.queries)
        self.queries.copy_(places + 0.1 * self.queries)
        for block in self.blocks:
            block.qkv[QUERIES].weight[:width] = block.qkv[IMAGE].weight[width : 2 * width]

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Return how many rows and columns of patches latents [B, C, H, W] have.

        Raises:
            ValueError: If the channels are others, the patches do not fit, or this encoder cannot place so many.
        """
        config, p = self.config, self.config.patch_size
        if latents.ndim != 4 or latents.shape[1] != config.channels or latents.shape[2] % p or latents.shape[3] % p:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this encoder takes [B, {config.channels}, H, W] with H "
                f"and W divisible by patch_size ({p})"
            )
        h, w = latents.shape[2] // p, latents.shape[3] // p
        config.check_patches(h, w, f"an image with latents {tuple(latents.shape[1:])}")
        if config.mode == "spatial" and config.start == "grid" and (h, w) != self.start_grid:  # as many, elsewhere
            raise ValueError(
                f"an image with latents {tuple(latents.shape[1:])} has {h} x {w} patches, and mode=spatial with "
                f"start=grid takes only the size it was made for: {self.start_grid[0]} x {self.start_grid[1]}"
            )
        return h, w

    def forward(self, latents: Tensor) -> Tensor:
        """Encode latents [B, C, H, W] (H and W divisible by patch_size) into vectors [B, K, D]."""
        config = self.config
        h, w = self.grid(latents)
        latents = latents.to(self.patch_in.weight.dtype)

        # Patches and their places.
        if config.position_table is None:
            places = centred_grid(h, w, config.patch_width, latents.device)
        else:
            places = cropped_table(h, w, config.position_table, config.patch_width)
        patches = self.patch_in(to_patches(latents, config.patch_size))
        streams = {IMAGE: patches + places.to(latents)}

        # Which position sees which.
        visible = coarser(h * w, config.num_tokens, latents.device) if config.causal else None
        if config.local:
            covered, visible = (mask.to(latents.device) for mask in inside(config.num_tokens, h, w))

        # Queries, the same for every image, and what they gather at their scales.
        if config.mode == "queries":
            queries = self.queries
            if config.query_position == "sincos":
                order = torch.arange(config.num_tokens, device=latents.device)
                queries = queries + sincos(order, config.width).to(queries)
            streams[QUERIES] = queries.expand(latents.shape[0], -1, -1)
            if config.start == "haar":
                tables = on_grid(self.scales, h, w)
                if config.local:
                    tables = tables * covered
                streams[QUERIES] = queries + tables.to(patches.dtype) @ patches * (self.scales[0].numel() / (h * w))

        for block in self.blocks:
            streams = block(streams, visible)
        vectors = streams[self.read]

        # Without queries: patches in the order in which a decoder with the same start places their tokens.
        if config.mode == "spatial" and config.start == "grid":
            middle = torch.tensor([(h - 1) / 2, (w - 1) / 2])
            rows, columns = (spread_points(h * w, h, w) + middle).round().long().unbind(1)
            vectors = vectors[:, (rows * w + columns).to(latents.device)]
        return self.norm(vectors)
