"""The encoder's blocks: image patches and queries keep their own weights and meet in attention.

Shape letters: B batch, L positions of one stream, K queries, S positions of all, H heads, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddt_tokenizer.attend import attend
from ddt_tokenizer.positions import sincos, token_positions

IMAGE, QUERIES = 0, 1


class TokenModulation(nn.Module):
    """Shift, scale and gate of each query by its place in the order (Selftok's token-aware adaLN, arXiv:2505.07538).

    Zero at the start: every query's residual branch begins closed.

    Args:
        width: D of the queries.
    """

    def __init__(self, width: int):
        super().__init__()
        self.position_in = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, 6 * width)
        for layer in (self.position_in[0], self.position_in[2]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, count: int) -> tuple[Tensor, ...]:
        """Shift, scale, gate of attention, then of the MLP: six of [count, D]."""
        places = sincos(token_positions(count, self.out.weight.device), 256).to(self.out.weight.dtype)
        return self.out(F.silu(self.position_in(places))).chunk(6, dim=-1)


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
        widths: tuple[int, ...],
        heads: tuple[int, ...],
        mlp_ratio: float = 4.0,
        *,
        one_way: bool = False,
        affine: bool = True,
        qk_norm: bool = True,
        modulated: bool = False,
        updated: tuple[int, ...] = (IMAGE, QUERIES),
    ):
        super().__init__()
        self.heads, self.updated = heads, updated
        streams = range(len(widths))
        attending = [i for i in streams if i in updated or not one_way]

        def head_norms() -> nn.ModuleDict:
            return nn.ModuleDict(
                {str(i): nn.RMSNorm(widths[i] // heads[i], eps=1e-6) if qk_norm else nn.Identity() for i in attending}
            )

        def layer_norm(i: int) -> nn.Module:
            return nn.LayerNorm(widths[i], eps=1e-6, elementwise_affine=affine)

        def mlp(i: int) -> nn.Module:
            width, hidden = widths[i], int(widths[i] * mlp_ratio)
            return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

        self.norm = nn.ModuleList(layer_norm(i) for i in streams)
        self.qkv = nn.ModuleDict({str(i): nn.Linear(widths[i], 3 * widths[i]) for i in attending})
        self.q_norm = head_norms()
        self.k_norm = head_norms()
        self.out = nn.ModuleDict({str(i): nn.Linear(widths[i], widths[i]) for i in updated})
        self.mlp_norm = nn.ModuleDict({str(i): layer_norm(i) for i in updated})
        self.mlp = nn.ModuleDict({str(i): mlp(i) for i in updated})
        self.image_kv = nn.Linear(widths[IMAGE], 2 * widths[QUERIES]) if one_way else None
        self.modulation = TokenModulation(widths[QUERIES]) if modulated else None

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """Update the streams, each [B, L, D]."""
        inputs = [norm(x) for norm, x in zip(self.norm, streams, strict=True)]
        if self.modulation is not None:
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(streams[QUERIES].shape[1])
            inputs[QUERIES] = inputs[QUERIES] * (1 + scale) + shift
        mixed = self.mix_jointly(inputs) if self.image_kv is None else self.mix_one_way(*inputs)
        streams = list(streams)
        for i in self.updated:
            x, y, mlp, mlp_norm = streams[i], self.out[str(i)](mixed[i]), self.mlp[str(i)], self.mlp_norm[str(i)]
            if i == QUERIES and self.modulation is not None:
                x = x + gate * y
                streams[i] = x + mlp_gate * mlp(mlp_norm(x) * (1 + mlp_scale) + mlp_shift)
            else:
                x = x + y
                streams[i] = x + mlp(mlp_norm(x))
        return streams

    def mix_jointly(self, inputs: list[Tensor]) -> list[Tensor]:
        """Let every position attend to all positions of all streams [B, L, D]."""
        parts = []
        for i, x in enumerate(inputs):
            q, k, v = self._split(self.qkv[str(i)](x), i)
            parts.append((self.q_norm[str(i)](q).to(v.dtype), self.k_norm[str(i)](k).to(v.dtype), v))
        mixed = self._attend(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
        return list(mixed.split([x.shape[1] for x in inputs], dim=1))

    def mix_one_way(self, image: Tensor, queries: Tensor) -> list[Tensor]:
        """Let patches [B, L, D] attend to patches, and queries [B, K, D'] to patches and queries."""
        mixed = [image, queries]
        if IMAGE in self.updated:
            name = str(IMAGE)
            q, k, v = self._split(self.qkv[name](image), IMAGE)
            mixed[IMAGE] = self._attend(self.q_norm[name](q).to(v.dtype), self.k_norm[name](k).to(v.dtype), v)
        name = str(QUERIES)
        q, k, v = self._split(self.qkv[name](queries), QUERIES)
        image_k, image_v = self._split(self.image_kv(image), QUERIES)
        k, v = torch.cat([image_k, k], dim=1), torch.cat([image_v, v], dim=1)
        mixed[QUERIES] = self._attend(self.q_norm[name](q).to(v.dtype), self.k_norm[name](k).to(v.dtype), v)
        return mixed

    def _split(self, x: Tensor, stream: int) -> tuple[Tensor, ...]:
        """Cut [B, L, n * D] into n tensors [B, L, H, D/H] of a stream's heads."""
        width = self.norm[stream].normalized_shape[0]
        return x.unflatten(-1, (-1, self.heads[stream], width // self.heads[stream])).unbind(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over [B, S, H, D/H] as [B, S, D]."""
        return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)
