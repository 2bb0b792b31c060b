"""What this package takes for granted of a backbone, measured on a few random tokens before anything relies on it.

Architectures differ in heads, caches, masks and positions, and none says so. So nothing is looked up by name.

Shape letters: B rows, L sequence length, V rows of the head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ddt_llm.head import head_logits
from ddt_llm.masks import Layout, attention_mask
from ddt_llm.opening import FOREIGN_ERRORS, named_errors, quiet_transformers
from ddt_llm.positions import most_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 12  # tokens of a row of the test

_packs: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


def check_backbone(model: "PreTrainedModel") -> None:
    """Refuse a model that does not predict the next token from those before it, in the way in which it is trained here.

    Raises:
        ValueError: If its logits are not those that `head_logits` makes of its hidden states, depend on later tokens,
            or are not finite.
    """
    name = type(model).__name__
    with trial(model):
        tokens = trial_tokens(model)
        with named_errors(name):
            own = model(input_ids=tokens, use_cache=False).logits.float()
        if not own.isfinite().all():
            raise ValueError(f"the weights of this {name} are not finite (NaN or infinite): train or load it again")
        if not agree(model, own[0, :-1], own[1, :-1]):
            raise ValueError(f"{name} cannot be the backbone: it sees tokens that come later; use a causal model")
        try:
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            same = agree(model, head_logits(model, hidden), own)
        except FOREIGN_ERRORS:
            same = False
    if not same:
        raise ValueError(
            f"{name} cannot be the backbone: between its hidden states and its logits lies more than a linear head, "
            f"a factor and a soft cap"
        )


def check_packing(model: "PreTrainedModel") -> None:
    """Refuse a model that predicts other tokens for examples in a packed row than for the same in rows of their own.

    It is measured once.

    Raises:
        ValueError: If it is such a model.
    """
    if model.device.type == "meta":
        return
    if model not in _packs:
        _packs[model] = _packs_apart(model)
    if not _packs[model]:
        raise ValueError(
            f"{type(model).__name__} cannot train on packed rows, its examples would see one another: "
            f"set row_length=0 (or use collate, not collate_packed)"
        )


def _packs_apart(model: "PreTrainedModel") -> bool:
    with trial(model):
        row = trial_tokens(model)[1:]
        parts = row.split([row.shape[1] // 2, row.shape[1] - row.shape[1] // 2], dim=1)
        positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None].to(row.device)
        try:
            hidden = model.base_model(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state
            apart = [model.base_model(input_ids=part, use_cache=False).last_hidden_state for part in parts]
            return agree(model, head_logits(model, hidden), head_logits(model, torch.cat(apart, dim=1)))
        except FOREIGN_ERRORS:
            return False


def check_masks(model: "PreTrainedModel") -> None:
    """Refuse a backbone that does not see by the mask it is given. Measured on a few tokens.

    Raises:
        ValueError: If it is one, such as Mamba; or its attention takes no mask.
    """
    with trial(model):
        one, other = trial_tokens(model)  # which differ in the last token
        places = torch.arange(len(one), device=one.device)[None]
        causal = Layout.causal(places)
        both = causal.spans(torch.zeros_like(places[:, :1]), torch.full_like(places[:, :1], len(one)))
        attention_mask(causal.visible(), model)  # refuses what it refuses

        def logits(tokens: Tensor, layout: Layout) -> Tensor:
            mask = attention_mask(layout.visible(), model)
            hidden = model.base_model(tokens[None], position_ids=places, attention_mask=mask, use_cache=False)
            return head_logits(model, hidden.last_hidden_state)

        try:
            plain = head_logits(model, model.base_model(one[None], use_cache=False).last_hidden_state)
            right = agree(model, logits(one, causal), plain)
            follows = right and not torch.equal(logits(one, both)[:, 0], logits(other, both)[:, 0])
        except FOREIGN_ERRORS:
            follows = False
    if not follows:
        raise ValueError(f"{type(model).__name__} cannot denoise: it does not see by the mask that it is given")


def trial_tokens(model: "PreTrainedModel") -> Tensor:
    """Draw tokens [2, L] for a test of a model: two rows that differ in the last one."""
    rows = model.get_input_embeddings().weight.shape[0]
    length = min(LENGTH, most_positions(model.config) or LENGTH)
    row = torch.randint(rows, (length,), generator=torch.Generator().manual_seed(0))
    other = torch.cat([row[:-1], (row[-1:] + 1) % rows])
    return torch.stack([row, other]).to(model.device)


def agree(model: "PreTrainedModel", logits: Tensor, expected: Tensor) -> bool:
    """Whether logits [..., V] are equal but for rounding: half of the digits, measured by the spread of all.

    In bf16 that is 0.26 of the spread. Steps over a cache that are right differ by up to 0.11 there (32 layers), by
    0.35 and more where a cache is wrong. Smaller faults, such as ALiBi's in packed rows (0.02), show in float32 alone;
    so `MultimodalLM.from_pretrained` tests a model before it rounds the weights.
    """
    plain = torch.get_float32_matmul_precision() == "highest"
    digits = max(torch.finfo(dtype).eps for dtype in (model.dtype, *(() if plain else (torch.bfloat16,))))
    return bool((logits - expected).abs().max() <= 3 * digits**0.5 * expected.std())


@contextmanager
def trial(model: "PreTrainedModel") -> Iterator[None]:
    """Prepare for a test of a model within the block: no gradients, no dropout, no autocast, no warnings."""
    with evaluating(model), torch.no_grad(), torch.autocast(model.device.type, enabled=False), quiet_transformers():
        yield


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
