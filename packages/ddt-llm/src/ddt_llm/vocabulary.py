"""The visual vocabulary of a language model: where image ids live among its tokens.

Shape letters: B batch, K visual tokens of an image, D width.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VisualOrder = Literal["coarse_to_fine", "tokenizer"]


@dataclass(frozen=True)
class VisualVocabulary:
    """Token ids of images: `codebook_size` visual tokens after the text tokens, then `<boi>` and `<eoi>`.

    >>> vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=3)
    >>> vocabulary.to_tokens(torch.tensor([[0, 5, 15]]))  # the coarsest id, index K-1, is written first
    tensor([[115, 105, 100]])

    Raises:
        ValueError: for sizes below 1 or an unknown `visual_order`.
    """

    text_size: int  # ids below it are text; the first visual token has this id
    codebook_size: int
    num_tokens: int  # K, visual tokens of one image
    visual_order: VisualOrder = "coarse_to_fine"

    def __post_init__(self):
        for name in ("text_size", "codebook_size", "num_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.visual_order not in get_args(VisualOrder):
            raise ValueError(f"visual_order ({self.visual_order!r}) must be one of {', '.join(get_args(VisualOrder))}")

    @property
    def visual(self) -> slice:
        """Rows of the embedding and of the head that hold visual tokens."""
        return slice(self.text_size, self.text_size + self.codebook_size)

    @property
    def boi(self) -> int:
        """Id of the token that opens an image."""
        return self.text_size + self.codebook_size

    @property
    def eoi(self) -> int:
        """Id of the token that closes an image."""
        return self.boi + 1

    @property
    def size(self) -> int:
        """Number of ids in use; a model may have more rows for padding."""
        return self.eoi + 1

    def to_tokens(self, ids: Tensor) -> Tensor:
        """Visual ids [..., K] in tokenizer order -> language-model tokens [..., K] in the order they are written.

        Raises:
            ValueError: if the last dimension is not K or an id lies outside the codebook.
        """
        if ids.shape[-1] != self.num_tokens:
            raise ValueError(
                f"ids have {ids.shape[-1]} tokens an image, the vocabulary has num_tokens {self.num_tokens}"
            )
        if ids.numel() and (ids.min() < 0 or ids.max() >= self.codebook_size):
            raise ValueError(
                f"ids span {int(ids.min())} to {int(ids.max())}, outside the codebook of {self.codebook_size}: "
                "encode with the tokenizer this model was made for"
            )
        return self._reorder(ids.long()) + self.text_size

    def to_ids(self, tokens: Tensor) -> Tensor:
        """Inverse of `to_tokens`: tokens [..., K] -> visual ids int64 [..., K] in tokenizer order."""
        return self._reorder(tokens.long()) - self.text_size

    def _reorder(self, ids: Tensor) -> Tensor:
        return ids.flip(-1) if self.visual_order == "coarse_to_fine" else ids

    @classmethod
    def from_config(cls, config: "PretrainedConfig") -> "VisualVocabulary":
        """Read the vocabulary that `expand_vocabulary` recorded in a transformers config.

        Raises:
            ValueError: if the model was never expanded.
        """
        if getattr(config, "ddt", None) is None:
            raise ValueError("the language model has no visual vocabulary: call expand_vocabulary(model, ...) first")
        return cls(**config.ddt)


def expand_vocabulary(
    model: "PreTrainedModel | str | Path",
    text_tokenizer: "PreTrainedTokenizerFast | None" = None,
    *,
    codebook_size: int,
    num_tokens: int,
    visual_order: VisualOrder = "coarse_to_fine",
    seed: int = 0,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Add visual tokens, `<boi>` and `<eoi>` to a causal LM and its text tokenizer.

    Rows of text tokens keep every bit. New rows are drawn from a normal distribution with the mean and the
    covariance of the text rows, in the embedding and, if it has its own weights, in the head.

    Args:
        model: Any transformers causal LM (changed in place) or what `AutoModelForCausalLM.from_pretrained` takes.
        text_tokenizer: Its fast tokenizer (copied); by default the one that lies beside the model.
        codebook_size: Number of different visual ids.
        num_tokens: Visual tokens of one image, K.
        visual_order: Order in which the model writes an image.
        seed: Seed of the new rows.

    Returns:
        The model, with the vocabulary recorded in `model.config.ddt`, and the tokenizer.

    Raises:
        ValueError: if the model or the tokenizer was expanded before, or no tokenizer is known.
    """
    if isinstance(model, str | Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        text_tokenizer = text_tokenizer or AutoTokenizer.from_pretrained(model)
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)  # master weights
    if text_tokenizer is None:
        raise ValueError("text_tokenizer is missing: pass the tokenizer that belongs to this model object")
    if getattr(model.config, "ddt", None) is not None or "<boi>" in text_tokenizer.get_vocab():
        raise ValueError("the language model has a visual vocabulary already: expand the original text model instead")

    text_tokenizer, text_size = _add_visual_tokens(text_tokenizer, codebook_size)
    vocabulary = VisualVocabulary(text_size, codebook_size, num_tokens, visual_order)
    if model.get_input_embeddings().weight.shape[0] < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    _draw_new_rows(model, vocabulary, torch.Generator().manual_seed(seed))
    model.config.ddt = asdict(vocabulary)
    return model, text_tokenizer


def _add_visual_tokens(text_tokenizer, codebook_size: int):
    from transformers import AddedToken

    text_tokenizer = copy.deepcopy(text_tokenizer)
    names = [*(f"<v_{index}>" for index in range(codebook_size)), "<boi>", "<eoi>"]
    # Special tokens can be switched off while encoding: what a user types never becomes one of them.
    text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = text_tokenizer.convert_tokens_to_ids(names)
    assert ids == list(range(ids[0], ids[0] + len(names)))
    return text_tokenizer, ids[0]


@torch.no_grad()
def _draw_new_rows(model: nn.Module, vocabulary: VisualVocabulary, generator: torch.Generator) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
    new = slice(vocabulary.text_size, vocabulary.size)
    for table in tables:
        old = table[: vocabulary.text_size].float()
        mean = old.mean(0)
        covariance = (old - mean).T @ (old - mean) / len(old)
        values, vectors = torch.linalg.eigh(covariance)
        noise = torch.randn(new.stop - new.start, len(mean), generator=generator).to(old.device)
        table[new] = (mean + noise * values.clamp(min=0).sqrt() @ vectors.T).to(table.dtype)
    if getattr(head, "bias", None) is not None:
        head.bias[new] = head.bias[: vocabulary.text_size].mean()
