"""Who sees whom: one rule for causal rows, prefixes, bidirectional spans, blocks, and noised copies beside clean text.

Shape letters: B rows, S positions of a row.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """What decides who sees whom, int64 [B, S] each.

    A position sees the clean ones of its document up to its horizon, and the noised ones of its own group. So clean
    positions never see a noised one, and a group sees no other.

    Example:
        >>> clean = Layout.causal(torch.arange(5)[None])
        >>> places, start, group = (torch.tensor([each]) for each in ([3, 4], [3, 3], [1, 1]))
        >>> whole = clean.beside(places, start, group)  # 5 and 6 are noised copies of 3 and 4
        >>> whole.visible()[0].int().tolist()[4:]
        [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 1, 1]]
    """

    document: Tensor  # which example of a packed row
    place: Tensor  # where it stands in its document, from 0: its position id
    horizon: Tensor  # the last place of which it sees the clean token
    group: Tensor  # 0 of clean positions; noised ones see those of the same number

    @classmethod
    def causal(cls, places: Tensor) -> Self:
        """Let each position see those before it and itself; documents begin where `places` [B, S] are 0."""
        return cls((places == 0).cumsum(1), places, places, torch.zeros_like(places))

    def spans(self, start: Tensor, stop: Tensor) -> Self:
        """Let positions see to the end of a span: of places `start` to `stop` - 1, int64 [B, N] of all documents.

        One span from 0 is a prefix (prefix LM, arXiv:1910.10683), one later is bidirectional, several in a row are
        causal by blocks.
        """
        place = self.place[..., None]
        inside = (start[:, None] <= place) & (place < stop[:, None])  # [B, S, N]
        last = torch.where(inside, stop[:, None] - 1, -1).amax(-1)
        return type(self)(self.document, self.place, self.horizon.maximum(last), self.group)

    def beside(self, places: Tensor, start: Tensor, group: Tensor, document: Tensor | None = None) -> Self:
        """Put noised copies behind the clean positions, int64 [B, N] each.

        They see what is clean before `start`, and one another within their group (block diffusion, arXiv:2503.09573).

        Args:
            places: Of the positions that they are copies of.
            start: Place at which their block begins.
            group: Of a block, from 1; the numbers of two documents of a row differ.
            document: Of each, from 1 in the order of the row; None where a row is one document.
        """
        document = torch.ones_like(places) if document is None else document
        parts = ((self.document, document), (self.place, places), (self.horizon, start - 1), (self.group, group))
        return type(self)(*(torch.cat(pair, dim=1) for pair in parts))

    def visible(self) -> Tensor:
        """Return bool [B, S, S], True where the position of a row sees that of a column."""
        mine, theirs = (slice(None), slice(None), None), (slice(None), None, slice(None))
        clean = (self.group[theirs] == 0) & (self.place[theirs] <= self.horizon[mine])
        noised = (self.group[theirs] > 0) & (self.group[mine] == self.group[theirs])
        return (self.document[mine] == self.document[theirs]) & (clean | noised)


def attention_mask(visible: Tensor, model: "PreTrainedModel") -> Tensor:
    """Turn bool [B, S, S] into the mask [B, 1, S, S] that a backbone takes: bool, or added to scores.

    Raises:
        ValueError: If its attention takes none, as those of flash attention and flex attention.
    """
    kind, visible = model.config._attn_implementation, visible[:, None]
    if kind in ("ddt", "sdpa"):
        return visible
    if kind == "eager":
        return torch.zeros_like(visible, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)
    raise ValueError(f"attention {kind!r} takes no mask of our own; load the model with attn_implementation='sdpa'")
