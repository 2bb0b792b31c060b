"""The encoder's blocks: image patches and queries keep their own weights and meet in attention.

Shape letters: B batch, L positions of one stream, K queries, S positions of all, H heads, D width.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddt_tokenizer.attend import attend
from ddt_tokenizer.positions import sincos, token_positions
from ddt_tokenizer.scales import haar_tables

IMAGE, QUERIES = "0", "1"  # the streams, by their names in checkpoints


class Modulation(NamedTuple):
    """What adaLN does to a branch f: x + gate * f(norm(x) * (1 + scale) + shift), each [K, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def shifted(self, x: Tensor) -> Tensor:
        return x * (1 + self.scale) + self.shift


class TokenModulation(nn.Module):
    """Shift, scale and gate of each query by its place in the order (Selftok's token-aware adaLN, arXiv:2505.07538).

    Zero at the start: every query's residual branch begins closed.
    """

    def __init__(self, width: int):
        super().__init__()
        self.position_in = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, 6 * width)
        for layer in (self.position_in[0], self.position_in[2]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, count: int) -> tuple[Modulation, Modulation]:
        """Compute the modulations of attention and of the MLP for `count` queries."""
        places = sincos(token_positions(count, self.out.weight.device), 256).to(self.out.weight.dtype)
        six = self.out(F.silu(self.position_in(places))).chunk(6, dim=-1)
        return Modulation(*six[:3]), Modulation(*six[3:])


class EncoderBlock(nn.Module):
    """Attention between streams, then an MLP for each (the encoder block of DDT, arXiv:2504.14666).

    Joint: every position attends to all positions of all streams, which need equal widths and heads; with one stream
    this is an ordinary transformer block. One-way: patches attend to patches; queries attend to patches, whose keys and
    values they get from a second projection, and to queries (the "Uni" encoder of Selftok, arXiv:2505.07538).

    Args:
        widths: D of each stream: the image, and the queries if there are any.
        heads: H of each stream.
        mlp_ratio: Hidden width of the MLPs over D.
        one_way: Whether the image takes no notice of the queries.
        affine: Whether the norms before attention and MLP learn a scale and a shift.
        qk_norm: Whether attention's queries and keys are normalised (RMSNorm).
        modulated: Whether the query stream is modulated by the place of each token.
        updated: The streams to update; in the last block only the one that is read.
    """

    def __init__(
        self,
        widths: dict[str, int],
        heads: dict[str, int],
        mlp_ratio: float = 4.0,
        *,
        one_way: bool = False,
        affine: bool = True,
        qk_norm: bool = True,
        modulated: bool = False,
        updated: tuple[str, ...] = (IMAGE, QUERIES),
    ):
        super().__init__()
        self.widths, self.heads, self.updated = widths, heads, updated
        attending = [name for name in widths if name in updated or not one_way]
        layer_norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=affine)
        head_norm = partial(nn.RMSNorm, eps=1e-6) if qk_norm else nn.Identity

        def mlp(name: str) -> nn.Module:
            width, hidden = widths[name], int(widths[name] * mlp_ratio)
            return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

        self.norm = nn.ModuleDict({name: layer_norm(width) for name, width in widths.items()})
        self.qkv = nn.ModuleDict({name: nn.Linear(widths[name], 3 * widths[name]) for name in attending})
        self.q_norm = nn.ModuleDict({name: head_norm(widths[name] // heads[name]) for name in attending})
        self.k_norm = nn.ModuleDict({name: head_norm(widths[name] // heads[name]) for name in attending})
        self.out = nn.ModuleDict({name: nn.Linear(widths[name], widths[name]) for name in updated})
        self.mlp_norm = nn.ModuleDict({name: layer_norm(widths[name]) for name in updated})
        self.mlp = nn.ModuleDict({name: mlp(name) for name in updated})
        self.image_kv = nn.Linear(widths[IMAGE], 2 * widths[QUERIES]) if one_way else None
        self.modulation = TokenModulation(widths[QUERIES]) if modulated else None

    def forward(self, streams: dict[str, Tensor], visible: Tensor | None = None) -> dict[str, Tensor]:
        """Update the streams, each [B, L, D], in order; `visible` bool [S, S] says which position sees which."""
        inputs = {name: norm(streams[name]) for name, norm in self.norm.items()}
        if self.modulation is not None:
            attention, mlp = self.modulation(streams[QUERIES].shape[1])
            inputs[QUERIES] = attention.shifted(inputs[QUERIES])
        mixed = (self.mix_jointly if self.image_kv is None else self.mix_one_way)(inputs, visible)

        # Residual branches: attention, then the MLP.
        streams = dict(streams)
        for name in self.updated:
            x, y = streams[name], self.out[name](mixed[name])
            if name == QUERIES and self.modulation is not None:
                x = x + attention.gate * y
                streams[name] = x + mlp.gate * self.mlp[name](mlp.shifted(self.mlp_norm[name](x)))
            else:
                x = x + y
                streams[name] = x + self.mlp[name](self.mlp_norm[name](x))
        return streams

    def mix_jointly(self, inputs: dict[str, Tensor], visible: Tensor | None = None) -> dict[str, Tensor]:
        """Let every position attend to all positions of all streams [B, L, D], or to those that it sees."""
        parts = [self._normed(name, *self._split(name, self.qkv[name](x))) for name, x in inputs.items()]
        lengths = [x.shape[1] for x in inputs.values()]
        mixed = _attend(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)), visible)
        return dict(zip(inputs, mixed.split(lengths, dim=1), strict=True))

    def mix_one_way(self, inputs: dict[str, Tensor], visible: Tensor | None = None) -> dict[str, Tensor]:
        """Let patches [B, L, D] attend to patches, and queries [B, K, D'] to patches and the queries they see."""
        mixed = {}
        if IMAGE in self.updated:
            parts = self._split(IMAGE, self.qkv[IMAGE](inputs[IMAGE]))
            mixed[IMAGE] = _attend(*self._normed(IMAGE, *parts))
        q, k, v = self._split(QUERIES, self.qkv[QUERIES](inputs[QUERIES]))
        image_k, image_v = self._split(QUERIES, self.image_kv(inputs[IMAGE]))
        k, v = torch.cat([image_k, k], dim=1), torch.cat([image_v, v], dim=1)
        seen = None if visible is None else visible[image_k.shape[1] :]
        mixed[QUERIES] = _attend(*self._normed(QUERIES, q, k, v), seen)
        return mixed

    def _split(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        """Cut [B, L, n * D] into n tensors [B, L, H, D/H] of a stream's heads."""
        return x.unflatten(-1, (-1, self.heads[name], self.widths[name] // self.heads[name])).unbind(2)

    def _normed(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_norm[name](q).to(v.dtype), self.k_norm[name](k).to(v.dtype), v


def coarser(patches: int, queries: int, device: torch.device) -> Tensor:
    """Show patches to all, and queries to themselves and finer ones, of lower index: bool [L + K, L + K].

    So a query sees the coarser ones (Semanticist, arXiv:2503.08685, orders its tokens so).

    Example:
        >>> coarser(1, 2, "cpu").int().tolist()
        [[1, 0, 0], [1, 1, 1], [1, 0, 1]]
    """
    rank = torch.cat([torch.full((patches,), queries, device=device), torch.arange(queries, device=device)])
    return rank >= rank[:, None]


@cache
def inside(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Compute which patches K tables cover, bool [K, h * w], and which positions lie inside which, bool [S, S].

    Positions are the patches, then the tables; a patch stands for the smallest rectangle around it. What sees only what
    is inside it knows, through however many blocks, of nothing outside.

    Example:
        >>> inside(4, 2, 2)[0].all()
        tensor(True)
    """
    covered = (haar_tables(count, height, width)[0] != 0).flatten(1)
    smallest = torch.where(covered, covered.sum(1, keepdim=True), height * width + 1).argmin(0)
    positions = torch.cat([covered[smallest], covered])
    outside = positions.float() @ (~positions).float().T  # [i, j]: patches of i that j does not cover
    return covered, outside.T == 0


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Attend over [B, S, H, D/H], each position to the keys that `visible` [S, keys] shows it: [B, S, D]."""
    shown = None if visible is None else visible[None, None]
    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), shown).transpose(1, 2).flatten(2)
