"""Attention of a backbone, any of transformers, by the quickest way that a device has for it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddt_llm.attend import attend, better_written_out
from ddt_llm.opening import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "ddt"  # among the attentions of transformers


def attend_by_device(model: "PreTrainedModel") -> None:
    """Let a backbone whose attention is torch's fused kernel attend by `attend`, where that is quicker.

    Nothing else changes: not what is saved, not what is computed but for rounding. A backbone with an attention of its
    own, or one that was told to use another, keeps it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))
        >>> attend_by_device(model)
        >>> model.config._attn_implementation
        'ddt'
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        with quiet_transformers():  # of those that cannot be told, and go on as before
            model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as `sdpa_attention_forward` of transformers does, of which the arguments are.

    Args:
        query, key, value: [B, H, L, D]; keys and values may have fewer heads.
        attention_mask: Bool [B, 1, L, L], True where a key is seen; None where all before a token are.

    Returns:
        [B, L, H, D], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Under autocast, rotated queries are float32 and values bf16; the fused kernel would take all as the latter.
    q, k = query.to(value.dtype), key.to(value.dtype)
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    if dropout or not plain or options.get("position_bias") is not None or not better_written_out(q, k):
        options |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and q.shape[2] > 1:
        attention_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return attend(q, k, v, attention_mask, scaling).transpose(1, 2).contiguous(), None
