"""Codebook health: usage alone hides collapse, so measure how codes are spread and how many each position uses.

Shape letters: N images, K tokens, V codebook size, D code width.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

DEAD_BITS = 0.5  # entropy below which a position tells next to nothing: one code takes nine tenths of the pictures


@dataclass(frozen=True)
class CodebookHealth:
    """Statistics of the ids of a set of images; `str()` sums them up in a few lines."""

    usage: float  # share of the codebook that occurs, 0..1
    perplexity: float  # of all ids together, 1..V
    codes_per_position: float  # distinct codes at one position, mean over the K positions
    bits_per_position: float  # entropy of the codes at one position, mean over the K positions
    effective_dimensions: float  # of the centred codebook, 1..D; near 1 all codes lie on a line
    perplexity_per_position: float  # effective number of codes at one position, mean over the K positions
    dead_codes: int  # entries that do not occur
    revived: int  # entries replaced since training began (0 for ids alone)
    images: int  # N; few images cannot use many codes
    position_bits: tuple[float, ...]  # entropy at each position, K values
    position_perplexity: tuple[float, ...]  # effective number of codes at each position, K values

    @property
    def dead_positions(self) -> list[int]:
        """Positions with less than half a bit of entropy; 0 is the finest.

        They make a language model's loss look good, and the picture does not need them. Tokens that are hidden most
        often, the finest, die first (FlexTok, arXiv:2502.13967, draws prefixes in powers of two against it).

        Example:
            >>> codebook_health(torch.tensor([[0, 1], [0, 2]]), torch.eye(4)).dead_positions
            [0]
        """
        return [position for position, bits in enumerate(self.position_bits) if bits < DEAD_BITS]

    def __str__(self) -> str:
        low, high, dead = min(self.position_bits), max(self.position_bits), self.dead_positions
        silent = f"{len(dead)} positions tell next to nothing: {', '.join(map(str, dead))}\n" if dead else ""
        return (
            f"{self.images:,} images: {self.usage:.1%} of the codebook used, {self.dead_codes:,} dead, "
            f"{self.revived:,} revived, perplexity {self.perplexity:,.1f}\n"
            f"a position has {self.codes_per_position:,.1f} codes, {self.bits_per_position:.2f} bits ({low:.2f} to "
            f"{high:.2f}), perplexity {self.perplexity_per_position:,.1f}\n{silent}"
            f"the codebook spans {self.effective_dimensions:.1f} effective dimensions"
        )

    def save(self, path: str | Path) -> None:
        """Write all figures as JSON, atomically."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(asdict(self), indent=2) + "\n")
        part.replace(path)


def codebook_health(ids: Tensor, codebook: Tensor, revived: int = 0) -> CodebookHealth:
    """Measure ids int64 [N, K] against their codebook [V, D]; `revived` entries of it were replaced so far.

    Raises:
        ValueError: If there are no ids.

    Example:
        >>> health = codebook_health(torch.tensor([[0, 1], [0, 2]]), torch.eye(4))
        >>> health.codes_per_position, health.dead_codes
        (1.5, 1)
        >>> print(str(health).splitlines()[0])
        2 images: 75.0% of the codebook used, 1 dead, 0 revived, perplexity 2.8
    """
    if not ids.numel():
        raise ValueError("there are no ids to measure; encode some pictures first")
    total = torch.bincount(ids.flatten(), minlength=len(codebook)).double()
    distinct, nats = [], []
    for column in ids.T:  # one position at a time, so that nothing of size K x V is held
        counts = torch.bincount(column, minlength=len(codebook)).double()
        distinct.append((counts > 0).sum().item())
        nats.append(_entropy(counts).item())
    spectrum = torch.linalg.svdvals((codebook - codebook.mean(0)).double()).square()
    bits = tuple(value / math.log(2) for value in nats)
    perplexities = tuple(math.exp(value) for value in nats)
    return CodebookHealth(
        usage=(total > 0).double().mean().item(),
        perplexity=_entropy(total).exp().item(),
        codes_per_position=sum(distinct) / len(distinct),
        bits_per_position=sum(bits) / len(bits),
        effective_dimensions=_entropy(spectrum).exp().item(),
        perplexity_per_position=sum(perplexities) / len(perplexities),
        dead_codes=int((total == 0).sum()),
        revived=revived,
        images=len(ids),
        position_bits=bits,
        position_perplexity=perplexities,
    )


def _entropy(weights: Tensor) -> Tensor:
    """Compute the entropy in nats of non-negative weights [n], normalised to sum to one."""
    return torch.special.entr(weights / weights.sum()).sum()
