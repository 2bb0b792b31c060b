"""Next-token cross-entropy, split into text and visual tokens.

Shape letters: B batch, L sequence length, N trained positions.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ddt_llm.head import head_nats
from ddt_llm.ranks import num_ranks, summed
from ddt_llm.self_test import check_packing
from ddt_llm.sequences import IGNORED
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenLoss:
    """Sums of cross-entropy in nats, and counts; scalar tensors. `<boi>` and `<eoi>` count as text.

    Losses add up: `sum(losses[1:], losses[0])` is the loss of all batches together.
    """

    text_nats: Tensor
    text_count: Tensor
    visual_nats: Tensor
    visual_count: Tensor

    @classmethod
    def of(cls, nats: Tensor, targets: Tensor, vocabulary: VisualVocabulary) -> Self:
        """Sum nats [N] of targets int64 [N]."""
        visual = (targets >= vocabulary.visual.start) & (targets < vocabulary.visual.stop)
        visual_nats, visual_count = (nats * visual).sum(), visual.sum()
        return cls(nats.sum() - visual_nats, len(targets) - visual_count, visual_nats, visual_count)

    @property
    def mean(self) -> Tensor:
        """Nats a token over both modalities, weighted one to one: what training minimises."""
        return (self.text_nats + self.visual_nats) / (self.text_count + self.visual_count)

    @property
    def bits_per_text_token(self) -> Tensor:
        """Bits a text token; NaN where there is none."""
        return self.text_nats / self.text_count / math.log(2)

    @property
    def bits_per_visual_token(self) -> Tensor:
        """Bits a visual token; NaN where there is none."""
        return self.visual_nats / self.visual_count / math.log(2)

    def of_all_ranks(self) -> Self:
        """Count as all ranks do on average: the mean over ranks of `mean` and of bits is then that of all tokens."""
        counts = summed(torch.stack([self.text_count, self.visual_count]).float()) / num_ranks()
        return replace(self, text_count=counts[0], visual_count=counts[1])

    def __add__(self, other: Self) -> Self:
        return replace(self, **{name: value + getattr(other, name) for name, value in vars(self).items()})


def token_loss(
    model: "PreTrainedModel",
    vocabulary: VisualVocabulary,
    input_ids: Tensor,
    labels: Tensor,
    position_ids: Tensor | None = None,
) -> TokenLoss:
    """Compute the cross-entropy of every trained position, with logits of those positions only and never all at once.

    Args:
        input_ids: int64 [B, L], padded on the right.
        labels: int64 [B, L], -100 where not trained. `labels[:, i]` is the token at i, predicted from those before it.
        position_ids: int64 [B, L] of packed rows, from `collate_packed`.

    Raises:
        ValueError: If rows are packed and the model cannot keep their examples apart.
    """
    if position_ids is not None:
        check_packing(model)
        position_ids = position_ids[:, :-1]
    hidden = model.base_model(input_ids=input_ids[:, :-1], position_ids=position_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return TokenLoss.of(head_nats(model, hidden[trained], targets[trained]), targets[trained], vocabulary)
