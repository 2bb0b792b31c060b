"""The visual vocabulary of a language model: where image ids live among its tokens, and who makes pictures of them.

Shape letters: B batch, N images, K visual tokens of an image; H, W space.
"""

import random
import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from ddt_llm.limits import PositiveInt, check_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# In which a model writes the ids of an image. The shuffled ones are three fixed permutations, the control of what an
# order is worth.
VisualOrder = Literal["coarse_to_fine", "tokenizer", "shuffled-0", "shuffled-1", "shuffled-2"]


@dataclass(frozen=True, kw_only=True)
class VisualVocabulary:
    """Token ids of images: `codebook_size` visual tokens after the text tokens, `<boi>`, `<eoi>`, perhaps `<v_mask>`.

    Raises:
        ValueError: If a size is below 1 or `visual_order` is unknown.

    Example:
        >>> import torch
        >>> vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=3)
        >>> vocabulary.to_tokens(torch.tensor([[0, 5, 15]]))  # the coarsest id, index K-1, is written first
        tensor([[115, 105, 100]])
    """

    text_size: PositiveInt  # ids below it are text; the first visual token has this id
    codebook_size: PositiveInt
    num_tokens: PositiveInt  # K, visual tokens of one image
    visual_order: VisualOrder = "coarse_to_fine"
    masked: bool = False  # whether there is a `<v_mask>`, for what a denoising model does not know yet

    def __post_init__(self):
        check_settings(self)

    @cached_property
    def order(self) -> list[int]:
        """Indices of ids in the order of writing.

        Example:
            >>> VisualVocabulary(text_size=9, codebook_size=8, num_tokens=4).order
            [3, 2, 1, 0]
        """
        if self.visual_order == "coarse_to_fine":
            return list(range(self.num_tokens))[::-1]
        if self.visual_order == "tokenizer":
            return list(range(self.num_tokens))
        drawn = random.Random(self.visual_order)  # its `random` is the same in any Python, which `sample` need not be
        return sorted(range(self.num_tokens), key=lambda _: drawn.random())

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
    def mask(self) -> int:
        """Id of the token that stands where one is not known yet.

        Raises:
            ValueError: If there is none.
        """
        if not self.masked:
            raise ValueError("the language model has no <v_mask>, it writes token by token: adapt it with ddt adapt")
        return self.eoi + 1

    @property
    def image_length(self) -> int:
        """Positions of an image: `<boi>`, K visual tokens, `<eoi>`."""
        return self.num_tokens + 2

    @property
    def size(self) -> int:
        """Number of ids in use; a model may have more rows for padding."""
        return self.eoi + 1 + self.masked

    def to_tokens(self, ids: Tensor) -> Tensor:
        """Turn visual ids [..., K] in tokenizer order into language-model tokens [..., K] in the order of writing.

        Raises:
            ValueError: If the last dimension is not K or an id lies outside the codebook.
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
        return ids.long()[..., self.order] + self.text_size

    def to_ids(self, tokens: Tensor) -> Tensor:
        """Turn tokens [..., K] back into visual ids int64 [..., K] in tokenizer order.

        Of an image that is being written, the n tokens [..., n] so far give their n ids: from coarse to fine those are
        the n coarsest.

        Example:
            >>> vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=3)
            >>> vocabulary.to_ids(torch.tensor([115, 105, 100])), vocabulary.to_ids(torch.tensor([115, 105]))
            (tensor([ 0,  5, 15]), tensor([ 5, 15]))
        """
        order = torch.tensor(self.order[: tokens.shape[-1]], device=tokens.device)
        return tokens.long()[..., order.argsort()] - self.text_size

    def spell(self, ids: Tensor) -> str:
        """Write the visual ids int64 [K] of an image as text, in the way that other tools take it.

        Example:
            >>> vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=3)
            >>> vocabulary.spell(torch.tensor([0, 5, 15]))
            '<boi><v_15><v_5><v_0><eoi>'
        """
        return f"<boi>{''.join(f'<v_{token - self.text_size}>' for token in self.to_tokens(ids).tolist())}<eoi>"

    def read(self, text: str) -> Tensor:
        """Find the whole images in a text that another tool wrote, and return their visual ids int64 [N, K].

        Example:
            >>> vocabulary = VisualVocabulary(text_size=100, codebook_size=16, num_tokens=3)
            >>> vocabulary.read(" here: <boi><v_15><v_5><v_0><eoi> and <boi><v_1>")
            tensor([[ 0,  5, 15]])
        """
        written = re.findall(rf"<boi>((?:<v_\d+>){{{self.num_tokens}}})<eoi>", text)
        codes = torch.tensor([[int(code) for code in re.findall(r"\d+", each)] for each in written], dtype=torch.long)
        return self.to_ids(codes.view(-1, self.num_tokens) + self.text_size)

    @classmethod
    def from_config(cls, config: "PretrainedConfig") -> Self:
        """Read the vocabulary that `expand_vocabulary` recorded in a transformers config.

        Raises:
            ValueError: If the model was never expanded, or what is recorded is no vocabulary.
        """
        if getattr(config, "ddt", None) is None:
            raise ValueError("the language model has no visual vocabulary: call expand_vocabulary(model, ...) first")
        return cls.from_settings(config.ddt, "'ddt' in the model's config")

    @classmethod
    def from_settings(cls, settings: Any, where: str) -> Self:
        """Take the vocabulary out of what a file of a checkpoint says; `where` names the file.

        Raises:
            ValueError: If an entry is missing or is none of its kind.
        """
        names = [field.name for field in fields(cls)]
        settings = {"masked": False, **settings} if isinstance(settings, dict) else settings  # older ones have none
        if not isinstance(settings, dict) or not set(names) <= settings.keys():
            raise ValueError(f"{where} must give {', '.join(names)}: save the model again")
        try:
            return cls(**{name: settings[name] for name in names})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
