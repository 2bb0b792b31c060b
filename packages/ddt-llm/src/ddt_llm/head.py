"""Logits of chosen rows of a language model's head, from the hidden states of its backbone.

Shape letters: N positions, D width, R rows.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_ROWS = slice(None)


def head_logits(model: "PreTrainedModel", hidden: Tensor, rows: slice = ALL_ROWS) -> Tensor:
    """Hidden states [N, D] of `model.base_model` -> float32 logits [N, R], equal to those of `model` on these rows.

    The three ways in which transformers models rescale logits after the head are followed: Gemma's soft cap,
    Cohere's factor and Granite's divisor.
    """
    head, config = model.get_output_embeddings(), model.config
    bias = getattr(head, "bias", None)
    logits = F.linear(hidden, head.weight[rows], None if bias is None else bias[rows]).float()
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits
