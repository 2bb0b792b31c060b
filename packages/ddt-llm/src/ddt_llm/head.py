"""A language model's head on the hidden states of its backbone: logits of chosen rows, and cross-entropy without them.

Shape letters: N positions, D width, R rows.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ALL_ROWS = slice(None)
POSITIONS = 512  # whose logits exist at a time


def head_logits(model: "PreTrainedModel", hidden: Tensor, rows: slice = ALL_ROWS) -> Tensor:
    """Compute float32 logits [N, R] from hidden states [N, D] of `model.base_model`, equal to those of `model`.

    The ways in which transformers models rescale logits after the head are followed: a factor (Cohere, Falcon-H1), a
    divisor (Granite) and a soft cap (Gemma, RecurrentGemma). `ddt_llm.self_test` finds those that have another one.
    """
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    hidden = hidden.to(head.weight.dtype)  # some backbones keep theirs in fp32
    logits = F.linear(hidden, head.weight[rows], None if bias is None else bias[rows]).float()
    return _rescaled(logits, model.config.get_text_config())


def _rescaled(logits: Tensor, config: "PretrainedConfig") -> Tensor:
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


def head_nats(model: "PreTrainedModel", hidden: Tensor, targets: Tensor) -> Tensor:
    """Compute cross-entropy [N] in nats of targets int64 [N] given hidden states [N, D], over all rows of the head.

    No more than the logits of `POSITIONS` positions exist at a time. The gradient is made beside the loss, while they
    do, so that they are made once (the idea of cut cross-entropy, arXiv:2411.09009, and Liger, arXiv:2410.10989). It is
    that of the sum, which any common factor then scales; only a loss that weighs positions unequally takes a second
    round.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    of_head = head.weight, getattr(head, "bias", None)
    if torch.is_grad_enabled():
        return _Nats.apply(hidden, *of_head, targets, config)
    return _nats(hidden, *of_head, targets, config, _working_dtype(head.weight))[0]


class _Nats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, config: Any) -> Tensor:
        ctx.config, ctx.dtype = config, _working_dtype(weight)
        inputs = hidden, weight, bias, targets
        nats, *gradients = _nats(*inputs, config, ctx.dtype, ctx.needs_input_grad)
        ctx.save_for_backward(*inputs, *gradients)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients, factor = ctx.saved_tensors[:4], ctx.saved_tensors[4:], outer[:1].sum()
        if not (outer == factor).all():
            _, *gradients = _nats(*inputs, ctx.config, ctx.dtype, ctx.needs_input_grad, outer)
            factor = 1
        return *(None if gradient is None else gradient * factor for gradient in gradients), None, None


def _working_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _nats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    config: "PretrainedConfig",
    dtype: torch.dtype,
    wanted: tuple[bool, ...] = (False, False, False),
    outer: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Compute nats [N] and, of those wanted, their gradients by hidden, weight and bias; summed with weights `outer`.

    Products are taken in `dtype`, sums over positions in float32.
    """
    nats = hidden.new_empty(len(hidden), dtype=torch.float32)
    by_hidden = torch.empty_like(hidden) if wanted[0] else None
    by_weight, by_bias = (
        torch.zeros_like(table, dtype=torch.float32) if want else None
        for table, want in zip((weight, bias), wanted[1:3], strict=True)
    )
    table, offset = weight.to(dtype), None if bias is None else bias.to(dtype)

    def take(part: slice) -> None:
        x, target = hidden[part].to(dtype), targets[part, None]
        scores = F.linear(x, table, offset).float().requires_grad_(any(wanted))
        with torch.set_grad_enabled(any(wanted)):
            logits = _rescaled(scores, config)

        # In place: the logits, their softmax, and what that has too much.
        p = logits.detach()
        own, largest = p.gather(1, target), p.amax(1, keepdim=True)
        total = p.sub_(largest).exp_().sum(1, keepdim=True)
        nats[part] = (total.log() + largest - own).squeeze(1)
        if not any(wanted):
            return
        p.div_(total).scatter_add_(1, target, torch.full_like(own, -1))
        if outer is not None:
            p.mul_(outer[part, None])

        (gradient,) = torch.autograd.grad(logits, scores, p)
        if by_bias is not None:
            by_bias.add_(gradient.sum(0))
        gradient = gradient.to(dtype)
        if by_hidden is not None:
            by_hidden[part] = gradient @ table
        if by_weight is not None and dtype == torch.float32:
            by_weight.addmm_(gradient.mT, x)  # without the product as a tensor of its own
        elif by_weight is not None:
            by_weight.add_(gradient.mT @ x)

    for start in range(0, len(hidden), POSITIONS):
        take(slice(start, start + POSITIONS))
    return nats, by_hidden, *(g if g is None else g.to(weight.dtype) for g in (by_weight, by_bias))
