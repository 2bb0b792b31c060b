"""A language model's head on the hidden states of its backbone: logits of chosen rows, and cross-entropy without them.

Shape letters: N positions, D width, R rows.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_ROWS = slice(None)
LARGEST_LOGITS = 2**25  # entries of a matrix of logits, 128 MiB in float32; beyond that they are made in parts


def head_logits(model: "PreTrainedModel", hidden: Tensor, rows: slice = ALL_ROWS) -> Tensor:
    """Compute float32 logits [N, R] from hidden states [N, D] of `model.base_model`, equal to those of `model`.

    The ways in which transformers models rescale logits after the head are followed: a factor (Cohere, Falcon-H1), a
    divisor (Granite) and a soft cap (Gemma, RecurrentGemma). `ddt_llm.self_test` finds those that have another one.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    bias = getattr(head, "bias", None)
    hidden = hidden.to(head.weight.dtype)  # some backbones keep theirs in fp32
    logits = F.linear(hidden, head.weight[rows], None if bias is None else bias[rows]).float()
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(config, name, None)) is not None:
            logits = cap * torch.tanh(logits / cap)
    return logits


def vocabulary_weights(model: "PreTrainedModel") -> list[nn.Parameter]:
    """Return the weights with a row for each token: the embedding and, unless it is tied, the head with its bias."""
    head = model.get_output_embeddings()
    weights = (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None))
    return list({id(weight): weight for weight in weights if weight is not None}.values())


def head_nats(model: "PreTrainedModel", hidden: Tensor, targets: Tensor, largest: int = LARGEST_LOGITS) -> Tensor:
    """Compute cross-entropy [N] in nats of targets int64 [N] given hidden states [N, D], over all rows of the head.

    No more than `largest` logits exist at a time: beyond that, positions are taken in parts whose logits are thrown
    away and computed again for the gradient, which costs one more product with the head.
    """
    positions = max(1, largest // model.get_output_embeddings().weight.shape[0])
    if len(hidden) <= positions:
        return _nats(model, hidden, targets)
    parts = zip(hidden.split(positions), targets.split(positions), strict=True)
    return torch.cat([checkpoint(_nats, model, *part, use_reentrant=False) for part in parts])


def _nats(model: "PreTrainedModel", hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head_logits(model, hidden), targets, reduction="none")
