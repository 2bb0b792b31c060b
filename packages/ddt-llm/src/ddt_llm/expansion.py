"""Growing a text model by a visual vocabulary, and taking it off again.

Shape letters: V codebook size, C width of a codebook vector.
"""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddt_llm.backbone import load_backbone
from ddt_llm.head import vocabulary_weights
from ddt_llm.positions import most_positions
from ddt_llm.self_test import check_backbone
from ddt_llm.sequences import Sequences
from ddt_llm.vocabulary import VisualOrder, VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MASK = "<v_mask>"  # not <mask>, which tokenizers may have: Gemma's does
UNUSED_ROW = "<unused_row_{}>"  # name of a row that the text model has beyond the tokens of its tokenizer


def expand_vocabulary(
    model: "PreTrainedModel | str | Path",
    text_tokenizer: "PreTrainedTokenizerFast | None" = None,
    *,
    codebook_size: int,
    num_tokens: int,
    visual_order: VisualOrder = "coarse_to_fine",
    codebook: Tensor | None = None,
    spread: float = 0.5,
    multiple: int = 1,
    seed: int = 0,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Add visual tokens, `<boi>` and `<eoi>` to a causal LM and its text tokenizer.

    Rows of the text model keep every bit. Rows beyond its tokenizer are kept too: they get names, `<unused_row_0>` and
    so on, and visual ids start after them.

    New rows ~ N(mean, spread^2 covariance), both of the text rows, in the embedding and, if it has its own weights, in
    the head. With a codebook, rows of visual tokens are its vectors under a random linear map that gives them this mean
    and, on average, this covariance: ids that look alike to the visual tokenizer start alike in the language model.

    Args:
        model: Any transformers causal LM (changed in place) or what `load_backbone` takes.
        text_tokenizer: Its fast tokenizer (copied); by default the one that lies beside the model.
        codebook: Vectors [V, C] of the visual tokenizer to start from.
        spread: Below 1, new rows take less probability from the text of a pretrained model before they are trained.
        multiple: The number of rows is padded to a multiple of this; 64 or 128 suits accelerators.

    Returns:
        The model, with the vocabulary recorded in `model.config.ddt`, and the tokenizer.

    Raises:
        ValueError: If the model or the tokenizer was expanded before, no tokenizer is known, its ids have holes or go
            beyond the model's rows, the codebook does not have V vectors, the model has no room for an image, or is
            none that this package trains rightly (`ddt_llm.self_test`).

    Example:
        >>> from ddt_llm import TinyLlamaConfig, tiny_llama, train_text_tokenizer
        >>> tokenizer = train_text_tokenizer(["a red fox"], vocab_size=300)
        >>> model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), tokenizer)
        >>> model, tokenizer = expand_vocabulary(model, tokenizer, codebook_size=8, num_tokens=4)
        >>> tokenizer.convert_ids_to_tokens(len(tokenizer) - 3)
        '<v_7>'
    """
    if isinstance(model, str | Path):
        model, beside = load_backbone(model)
        text_tokenizer = text_tokenizer or beside
    if text_tokenizer is None:
        raise ValueError("text_tokenizer is missing: pass the tokenizer that belongs to this model object")
    if getattr(model.config, "ddt", None) is not None or "<boi>" in text_tokenizer.get_vocab():
        raise ValueError("the language model has a visual vocabulary already: expand the original text model instead")
    if codebook is not None and len(codebook) != codebook_size:
        raise ValueError(f"codebook has {len(codebook)} vectors, codebook_size is {codebook_size}: pass the whole one")
    rows = model.get_input_embeddings().weight.shape[0]
    _check_text_tokenizer(text_tokenizer, rows)
    if not model.get_input_embeddings().weight.is_meta:  # shapes without values cannot be tried
        check_backbone(model)
    vocabulary = VisualVocabulary(
        text_size=rows, codebook_size=codebook_size, num_tokens=num_tokens, visual_order=visual_order
    )
    text_tokenizer = _with_visual_tokens(text_tokenizer, vocabulary)
    Sequences(vocabulary, text_tokenizer, most_positions(model.config))  # refuses what it refuses
    model.resize_token_embeddings(-(-vocabulary.size // multiple) * multiple, mean_resizing=False)
    if not model.get_input_embeddings().weight.is_meta:  # shapes without values have no rows to draw
        _draw_new_rows(model, vocabulary, codebook, spread, torch.Generator().manual_seed(seed))
    model.config.ddt = asdict(vocabulary)
    return model, text_tokenizer


def add_mask(
    model: "PreTrainedModel", text_tokenizer: "PreTrainedTokenizerFast"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Add `<v_mask>` after the visual vocabulary; its rows begin as the mean of the visual tokens, which it stands for.

    A row of padding is taken where there is one. Otherwise the model grows by a row.

    Returns:
        The model (changed in place) and its tokenizer. A model that has the token already comes back as it is.

    Raises:
        ValueError: If the model has no visual vocabulary, or its tokenizer has tokens of its own behind it.

    Example:
        >>> from ddt_llm import TinyLlamaConfig, tiny_llama, train_text_tokenizer
        >>> tokenizer = train_text_tokenizer(["a red fox"], vocab_size=300)
        >>> model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), tokenizer)
        >>> model, tokenizer = add_mask(*expand_vocabulary(model, tokenizer, codebook_size=8, num_tokens=4))
        >>> VisualVocabulary.from_config(model.config).mask, tokenizer.convert_tokens_to_ids("<v_mask>")
        (287, 287)
    """
    from transformers import AddedToken

    vocabulary = VisualVocabulary.from_config(model.config)
    if vocabulary.masked:
        return model, text_tokenizer
    vocabulary = replace(vocabulary, masked=True)
    text_tokenizer = copy.deepcopy(text_tokenizer)
    text_tokenizer.add_tokens([AddedToken(MASK, special=True, normalized=False)], special_tokens=True)
    if model.get_input_embeddings().weight.shape[0] < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    check_vocabulary(model, text_tokenizer, vocabulary)
    with torch.no_grad():
        for table in vocabulary_weights(model):
            table[vocabulary.mask] = table[vocabulary.visual].float().mean(0).to(table.dtype)
    model.config.ddt = {**model.config.ddt, **asdict(vocabulary)}
    return model, text_tokenizer


def remove_vocabulary(
    model: "PreTrainedModel", text_tokenizer: "PreTrainedTokenizerFast"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Undo `expand_vocabulary`.

    Returns:
        The text model (changed in place) and its tokenizer, equal to the bit if nothing was trained.

    Raises:
        ValueError: If the model has no visual vocabulary.

    Example:
        >>> from ddt_llm import TinyLlamaConfig, tiny_llama, train_text_tokenizer
        >>> tokenizer = train_text_tokenizer(["a red fox"], vocab_size=300)
        >>> model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), tokenizer)
        >>> model, text = remove_vocabulary(*expand_vocabulary(model, tokenizer, codebook_size=8, num_tokens=4))
        >>> text.get_vocab() == tokenizer.get_vocab()
        True
    """
    vocabulary = VisualVocabulary.from_config(model.config)
    names = set(unused_rows(text_tokenizer)) | set(_visual_names(vocabulary))
    text_tokenizer = copy.deepcopy(text_tokenizer)
    state = json.loads(text_tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in names]
    text_tokenizer._tokenizer = type(text_tokenizer.backend_tokenizer).from_str(json.dumps(state))
    if "<boi>" in (text_tokenizer.chat_template or ""):  # of a folder of ours; one of the base is kept
        text_tokenizer.chat_template = None
    model.resize_token_embeddings(vocabulary.text_size, mean_resizing=False)
    del model.config.ddt
    return model, text_tokenizer


def unused_rows(text_tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Return names and ids of the rows of the text model that stand for no token: a model should never write them."""
    prefix = UNUSED_ROW.partition("{")[0]
    return {name: token for name, token in text_tokenizer.get_added_vocab().items() if name.startswith(prefix)}


def check_vocabulary(
    model: "PreTrainedModel", text_tokenizer: "PreTrainedTokenizerFast", vocabulary: VisualVocabulary
) -> None:
    """Refuse a model or a tokenizer that does not have the tokens of a visual vocabulary.

    Raises:
        ValueError: If a row of the model, or the name of a token in the tokenizer, is missing.
    """
    rows, ids = model.get_input_embeddings().weight.shape[0], range(vocabulary.text_size, vocabulary.size)
    if rows < vocabulary.size or text_tokenizer.convert_tokens_to_ids(_visual_names(vocabulary)) != list(ids):
        raise ValueError(
            f"the visual vocabulary (ids {vocabulary.text_size} to {vocabulary.size - 1}) does not fit this model of "
            f"{rows} rows or its tokenizer: save the model again"
        )


def _check_text_tokenizer(text_tokenizer: "PreTrainedTokenizerFast", rows: int) -> None:
    ids = set(text_tokenizer.get_vocab().values())
    if (last := max(ids)) >= rows:
        raise ValueError(
            f"text_tokenizer has {last + 1} tokens, the language model {rows} rows: they do not belong together"
        )
    if holes := sorted(set(range(last)) - ids):
        raise ValueError(
            f"text_tokenizer has a token of id {last} and none of id {holes[0]}: new tokens would take ids of words; "
            f"use one without holes"
        )


def _visual_names(vocabulary: VisualVocabulary) -> list[str]:
    marks = ["<boi>", "<eoi>", *([MASK] if vocabulary.masked else [])]
    return [*(f"<v_{index}>" for index in range(vocabulary.codebook_size)), *marks]


def _with_visual_tokens(text_tokenizer, vocabulary: VisualVocabulary):
    from transformers import AddedToken

    text_tokenizer = copy.deepcopy(text_tokenizer)
    unused = [UNUSED_ROW.format(index) for index in range(vocabulary.text_size - len(text_tokenizer))]
    names = [*unused, *_visual_names(vocabulary)]
    # Special tokens can be switched off while encoding: what a user types never becomes one of them.
    text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if text_tokenizer.convert_tokens_to_ids(names) != list(range(vocabulary.size - len(names), vocabulary.size)):
        raise ValueError(f"text_tokenizer has tokens of its own between {names[0]} and {names[-1]}: use another one")
    return text_tokenizer


@torch.no_grad()
def _draw_new_rows(
    model: nn.Module,
    vocabulary: VisualVocabulary,
    codebook: Tensor | None,
    spread: float,
    generator: torch.Generator,
) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
    new = slice(vocabulary.text_size, vocabulary.size)
    for table in tables:
        text = table[: vocabulary.text_size].float()
        mean = text.mean(0)
        variances, axes = torch.linalg.eigh((text - mean).T @ (text - mean) / len(text))
        scale = spread * variances.clamp(min=0).sqrt()

        # Every new row first: mean + noise with the covariance of the text rows.
        noise = torch.randn(new.stop - new.start, len(mean), generator=generator).to(mean.device)
        table[new] = (mean + noise * scale @ axes.T).to(table.dtype)

        # Then rows from the codebook: vectors, centred and of length 1 on average, mixed into the same covariance.
        if codebook is not None:
            mixing = torch.randn(codebook.shape[1], len(mean), generator=generator).to(mean.device) * scale @ axes.T
            vectors = codebook.to(mean) - codebook.to(mean).mean(0)
            vectors = vectors / vectors.square().sum(1).mean().sqrt()
            table[vocabulary.visual] = (mean + vectors @ mixing).to(table.dtype)

        # Rows of padding stand for no token.
        table[vocabulary.size :] = mean.to(table.dtype)
    if getattr(head, "bias", None) is not None:
        head.bias[vocabulary.text_size :] = head.bias[: vocabulary.text_size].mean()
