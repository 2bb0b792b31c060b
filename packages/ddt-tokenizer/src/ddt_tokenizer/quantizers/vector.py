"""Vector quantizer: vectors to the nearest entry of a codebook that follows them by moving averages.

Shape letters: B batch, K tokens, N = B * K vectors (of one rank), D code width, V codebook size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddt_tokenizer.identity import identity
from ddt_tokenizer.limits import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, check_settings
from ddt_tokenizer.quantizers.diversity import diversity_loss, perplexity
from ddt_tokenizer.quantizers.nearest import nearest
from ddt_tokenizer.quantizers.quantizer import Quantized, linear_fp32
from ddt_tokenizer.ranks import from_first, gathered, num_ranks, rows, summed
from ddt_tokenizer.seeding import Rows


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """Size of a learned codebook, and how it learns."""

    kind: Literal["vq"] = "vq"
    codebook_size: PositiveInt = 512  # V
    code_width: PositiveInt = 12  # D
    decay: Decay = 0.99  # of the moving averages of counts and sums
    commitment: NonNegativeFloat = 1.0  # weight of |z - code|^2, which holds the encoder to its codes
    dead_share: NonNegativeFloat = 0.2  # an entry used less than this share of the uniform rate is replaced
    diversity: NonNegativeFloat = 0.0  # weight of the entropy of code usage; Selftok has 1
    # What replaces a dead entry: the worst-quantized vectors of the batch, any, or more of those from positions that
    # use few codes (Selftok).
    replacement: Literal["worst", "random", "position"] = "worst"
    revived_share: PositiveFloat = 1.0  # count that a new entry starts with, over the uniform rate
    # Entropy-constrained VQ: choose argmax <z, e> + rate * log p(e), p(e) being the share of e in all ids. 0 turns it
    # off. Above 0 a common entry wins over a rare one that is hardly nearer: what looks alike is written alike.
    rate: NonNegativeFloat = 0.0
    # Where vectors and codes lie. "sphere": all have length one. "ball": up to one, and the shorter a token, the less
    # it says, so that an id can say "nothing".
    space: Literal["sphere", "ball"] = "sphere"
    sparsity: NonNegativeFloat = 0.0  # weight of the mean length, which in a ball keeps short what is of no use
    # Standard deviation of what is added to vectors in training as long as they are not quantized: without it a short
    # vector would say as much as a long one.
    noise: NonNegativeFloat = 0.0

    def __post_init__(self):
        check_settings(self)
        if self.sparsity and self.space == "sphere":
            raise ValueError(f"sparsity ({self.sparsity}) needs vectors that differ in length; set space=ball")

    def build(self, width: int, num_tokens: int) -> "VectorQuantizer":
        return VectorQuantizer(width, self, num_tokens)

    def identity(self) -> dict[str, Any]:
        return identity(self, ("codebook_size", "code_width", "decay", "commitment", "dead_share"))


class VectorQuantizer(nn.Module):
    """Cosine vector quantizer with an EMA codebook (arXiv:1711.00937; cosine form and width 16 as in DDT and Selftok).

    In training each call updates the codebook, which starts as k-means of the first batch. Entries that die are
    replaced by vectors of the batch: by default the worst-quantized, since random ones mostly land in flat regions,
    where they become twins of codes that are there already. Kept and computed in fp32, in a bf16 model too. Ranks of a
    distributed run keep one codebook, equal to that of a single process on the concatenated batch; their batches must
    have one size. A batch that is not finite changes nothing.

    Args:
        num_tokens: K; needed where positions count (replacement=position, diversity).

    Example:
        >>> quantizer = VectorQuantizer(32, VectorConfig(codebook_size=16, code_width=4))
        >>> quantizer(torch.randn(8, 4, 32)).ids.shape
        torch.Size([8, 4])
    """

    def __init__(self, width: int, config: VectorConfig, num_tokens: int | None = None):
        super().__init__()
        self.config = config
        self.revived = 0  # entries replaced since this process began
        self.memories = ("sums", "histogram", *([] if config.rate else ["counts"]))  # with a rate ids depend on counts
        self.project = nn.Linear(width, config.code_width)
        self.norm = nn.LayerNorm(config.code_width, eps=1e-6)
        self.register_buffer("codebook", F.normalize(torch.randn(config.codebook_size, config.code_width), dim=-1))
        self.register_buffer("counts", torch.zeros(config.codebook_size))  # all zero: no batch seen yet
        self.register_buffer("sums", torch.zeros(config.codebook_size, config.code_width))
        self.register_buffer("histogram", None)  # moving code distribution of each position [K, V]
        if config.replacement == "position" or config.diversity:
            if num_tokens is None:
                raise ValueError("replacement=position and diversity count codes by position; give num_tokens")
            self.histogram = torch.full((num_tokens, config.codebook_size), 1 / config.codebook_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moves to another device, but not to another dtype: in bf16 the moving averages would stand still.
        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        return super()._apply(moved, recurse)

    def to_code_space(self, vectors: Tensor) -> Tensor:
        """Project [B, K, width] to vectors [B, K, D] of length one, or in a ball of less, fp32."""
        z = linear_fp32(self.project, vectors)
        if self.config.space == "ball":
            return z * (1 + z.square().sum(-1, keepdim=True)).rsqrt()
        return F.normalize(z, dim=-1)

    def lookup(self, z: Tensor) -> Tensor:
        """Find the nearest entry of vectors [..., D]: int64 [...].

        With `rate` the entry e of the smallest |z - e|^2 / 2 - rate * log share(e): entropy-constrained vector
        quantization (Chou, Lookabaugh, Gray 1989, doi:10.1109/29.17498).
        """
        vectors, entries, offsets = z.flatten(0, -2), self.codebook, None
        if self.config.rate:
            floor = self.config.dead_share * self.counts.mean() + 1e-6  # a dead entry can come back
            offsets = self.config.rate * (self.counts + floor).log()
        if self.config.space == "ball":
            offsets = (0 if offsets is None else offsets) - entries.square().sum(-1) / 2
        if offsets is not None:  # one more dimension, in which all vectors are 1
            vectors = F.pad(vectors, (0, 1), value=1.0)
            entries = torch.cat([entries, offsets[:, None]], dim=1)
        with torch.autocast(z.device.type, enabled=False):
            return nearest(vectors, entries).view(z.shape[:-1])

    def embed(self, ids: Tensor) -> Tensor:
        """Look ids [B, K] up and normalise them: tokens [B, K, D]."""
        return self.normalise(self.codebook[ids])

    def normalise(self, codes: Tensor) -> Tensor:
        """Apply the norm after the codebook (part of decoding in DDT and Selftok) to [..., D].

        In a ball only its scale and shift, since a norm would make a short token long.
        """
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        if self.config.space == "ball":
            return codes * (codes.shape[-1] ** 0.5 * weight) + bias
        with torch.autocast(codes.device.type, enabled=False):
            return F.layer_norm(codes, codes.shape[-1:], weight, bias, self.norm.eps)

    def continuous(self, vectors: Tensor) -> Tensor:
        z = self.to_code_space(vectors)
        if self.training and self.config.noise:
            z = z + self.config.noise * Rows.of_batch(len(z), z.device).noise(*z.shape[1:])
        return self.normalise(z)

    def prior(self, vectors: Tensor) -> Tensor:
        """Compute the group lasso of vectors [B, K, width] (Yuan, Lin 2006, doi:10.1111/j.1467-9868.2005.00532.x)."""
        return self._lasso(self.to_code_space(vectors)) if self.config.sparsity else vectors.new_zeros(())

    def _lasso(self, z: Tensor) -> Tensor:
        return self.config.sparsity * (z.square().sum(-1) + 1e-6).sqrt().mean()

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize query vectors [B, K, width]; gradients pass straight through to them."""
        z = self.to_code_space(vectors)
        first = self.training and not self.counts.any()
        if first:
            self._start(z.detach().flatten(0, 1))
        ids = self.lookup(z)
        codes = self.codebook[ids]
        loss = self.config.commitment * (codes - z).square().mean()
        if self.config.sparsity:
            loss = loss + self._lasso(z)
        tokens = self.normalise(z + (codes - z).detach())
        if self.training:
            before = self.codebook.clone() if self.config.diversity else None
            self._update(z.detach(), ids, first)
            if before is not None:
                with torch.autocast(z.device.type, enabled=False):
                    loss = loss + self.config.diversity * diversity_loss(z, before, self.histogram)
        return Quantized(tokens, ids, loss)

    @torch.no_grad()
    def _start(self, z: Tensor, iterations: int = 10) -> None:
        """Initialise the codebook by k-means, on a sphere spherical, of the vectors [N, D] of all ranks."""
        size, total = self.config.codebook_size, len(z) * num_ranks()
        picks = torch.randperm(total, device=z.device)[:size]
        picks = torch.cat([picks, torch.randint(total, (size - len(picks),), device=z.device)])
        start = rows(z, from_first(picks))
        if not start.isfinite().all():
            return
        self.codebook.copy_(start)
        for _ in range(iterations):
            ids = self.lookup(z)
            counts, sums = self._count(gathered(ids)), self._add(z, ids)
            self.codebook.copy_(torch.where(counts[:, None] > 0, self._means(sums, counts), self.codebook))
        self.counts.fill_(total / size)
        self.sums.copy_(self.codebook * self.counts[:, None])

    def _count(self, ids: Tensor) -> Tensor:
        """Count the ids of each entry: [V]."""
        return torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(ids, dtype=self.counts.dtype))

    def _add(self, z: Tensor, ids: Tensor) -> Tensor:
        """Add up the vectors [N, D] of each entry over all ranks: [V, D]."""
        return summed(torch.zeros_like(self.sums).index_add_(0, ids, z))

    def _means(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Turn sums [V, D] of vectors, and their counts [V], into entries."""
        if self.config.space == "sphere":  # the length does not matter, so the counts (and their smoothing) cancel
            return F.normalize(sums, dim=-1)
        return sums / counts[:, None].clamp(min=1e-12)

    @torch.no_grad()
    def _update(self, z: Tensor, ids: Tensor, first: bool) -> None:
        """Move the codebook towards the vectors [B, K, D] assigned to it, and revive dead entries."""
        everyone = gathered(ids)  # [B * ranks, K]
        flat, flat_ids = z.flatten(0, 1), ids.flatten()
        distance = (self.codebook[flat_ids] - flat).square().sum(-1)
        counts, sums = self._count(everyone.flatten()), self._add(flat, flat_ids)
        if not sums.isfinite().all():
            return
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        self.codebook.copy_(self._means(self.sums, self.counts))
        if self.histogram is not None:
            self._record(everyone, 0.3 if first else self.config.decay)

        uniform = everyone.numel() / self.config.codebook_size
        dead = (self.counts < self.config.dead_share * uniform).nonzero().flatten()[: everyone.numel()]
        if len(dead):
            new = rows(flat, self._donors(len(dead), distance, everyone))
            self.codebook[dead] = new
            self.counts[dead] = self.config.revived_share * uniform  # time to gather vectors of its own
            self.sums[dead] = new * self.counts[dead, None]
            self.revived += len(dead)

    def _record(self, ids: Tensor, decay: float) -> None:
        """Let the histogram follow the ids [B, K] of all ranks."""
        places = torch.arange(ids.shape[1], device=ids.device) * self.config.codebook_size + ids
        seen = torch.full((ids.numel(),), (1 - decay) / len(ids), device=ids.device)
        self.histogram.mul_(decay).view(-1).index_add_(0, places.flatten(), seen)

    def _donors(self, count: int, distance: Tensor, ids: Tensor) -> Tensor:
        """Choose the vectors that replace dead entries, as rows of all ranks' vectors: [count]."""
        if self.config.replacement == "worst":
            return gathered(distance).topk(count).indices
        images, positions = ids.shape
        image = torch.randint(images, (count,), device=ids.device)
        if self.config.replacement == "random":
            position = torch.randint(positions, (count,), device=ids.device)
        else:  # positions that use few codes give more (Selftok's "smart" reactivation)
            poverty = 1 / perplexity(self.histogram)
            position = (10 * poverty / poverty.max()).softmax(0).multinomial(count, replacement=True)
        return from_first(image * positions + position)
