"""How text and images are laid out in a sequence, for training and for prompts alike.

Shape letters: B batch, L sequence length, K visual tokens of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # label of a position that is not trained, as in torch's cross-entropy
REMEDY = "raise row_length, or take a model of more positions (max_positions) or a tokenizer of fewer num_tokens"
USER, ASSISTANT = "USER:", " ASSISTANT:"

Template = Literal["caption", "instruction"]
Part = str | Tensor  # a text, or the visual ids int64 [K] of an image in tokenizer order
Turn = tuple[Sequence[Part], Sequence[Part]]  # what the user said, and what the assistant answered


@dataclass(frozen=True)
class Example:
    """One training sequence: `input_ids` and `labels`, both int64 [L]; a label of -100 is not trained."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Piece:
    """Tokens of one part of a sequence."""

    tokens: list[int]
    text: bool = False  # what a user wrote, which may be cut
    trained: bool = True


class Sequences:
    """Lays text and images out for one vocabulary and one text tokenizer.

    Pretraining examples train every position (spec 4.1), instruction examples only the answer (spec 4.3).
    To train the unconditional branch of guidance, leave the condition out now and then: an empty caption, or
    `instruction([], answer)`.

    Args:
        longest: Most tokens of an example; the longest texts of one that has more lose their ends until it fits.

    Raises:
        ValueError: If the text tokenizer has no token that ends a sequence, or an image with a word is longer than
            `longest`.
    """

    def __init__(
        self, vocabulary: VisualVocabulary, text_tokenizer: "PreTrainedTokenizerFast", longest: int | None = None
    ):
        if text_tokenizer.eos_token_id is None:
            raise ValueError("text_tokenizer has no eos_token: set one, a sequence could not end without it")
        if longest is not None and longest < (least := vocabulary.image_length + 3):
            raise ValueError(f"an image and a word take {least} tokens, {longest} are the most: {REMEDY}")
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.longest = longest
        self.eos = text_tokenizer.eos_token_id
        self.bos = self.eos if text_tokenizer.bos_token_id is None else text_tokenizer.bos_token_id
        self.pad = self.eos if text_tokenizer.pad_token_id is None else text_tokenizer.pad_token_id

    def encode_text(self, text: str) -> list[int]:
        """Turn text into token ids, all of them text: names of special tokens in it are spelled out, never parsed."""
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}  # no word on its length
        return self.text_tokenizer(whole_text(text), **plain).input_ids

    def encode_image(self, ids: Tensor) -> list[int]:
        """Turn visual ids int64 [K] in tokenizer order into `<boi>`, K tokens, `<eoi>`."""
        return [self.vocabulary.boi, *self.vocabulary.to_tokens(ids).tolist(), self.vocabulary.eoi]

    def prompt(self, parts: Sequence[Part], template: Template, history: Sequence[Turn] = ()) -> list[int]:
        """Lay out everything before the answer.

        Args:
            parts: Texts and images. No part at all gives the unconditional prompt of guidance.
            template: "caption" takes one text or one image: `<bos> caption` or `<bos> <boi> v.. <eoi>`.
                "instruction" takes any number of both: `<bos> USER: parts ASSISTANT:`.
            history: Earlier turns of an instruction model, each closed by `<eos>`.

        Raises:
            ValueError: If the caption template gets more than one part or a history, or a text is no valid Unicode.
        """
        for part in parts:
            if isinstance(part, str) and part != whole_text(part):
                raise ValueError(f"the prompt {part[:80]!a} is not valid Unicode: type it in a terminal set to UTF-8")
        if template == "instruction":
            pieces = [piece for turn in history for piece in self._turn(*turn)] + self._question(parts)
            return [self.bos, *(token for piece in pieces for token in piece.tokens)]
        if len(parts) > 1 or history:
            raise ValueError(
                f"the prompt has {len(parts) + 2 * len(history)} parts, but a model with template 'caption' takes one "
                "text or one image: tune it on instructions first"
            )
        return [self.bos, *(token for piece in self._pieces(parts) for token in piece.tokens)]

    def document(self, parts: Sequence[Part]) -> Example:
        """Lay out `<bos> parts <eos>`: any texts and images in any order, as they come, for pretraining."""
        return self._example([Piece([self.bos]), *self._pieces(parts), Piece([self.eos])])

    def text_to_image(self, caption: str, ids: Tensor) -> Example:
        """Lay out `<bos> caption <boi> v.. <eoi> <eos>`; an empty caption gives `image_only`."""
        return self.document([caption, ids])

    def image_to_text(self, ids: Tensor, caption: str) -> Example:
        """Lay out `<bos> <boi> v.. <eoi> caption <eos>`."""
        return self.document([ids, caption])

    def image_only(self, ids: Tensor) -> Example:
        """Lay out `<bos> <boi> v.. <eoi> <eos>`."""
        return self.document([ids])

    def text_only(self, text: str, longest: int | None = None) -> Example:
        """Lay out `<bos> text <eos>`, or its first `longest` tokens."""
        most = min(filter(None, (longest, self.longest)), default=None)
        tokens = torch.tensor([self.bos, *self.encode_text(text), self.eos][:most])
        return Example(tokens, tokens.clone())

    def instruction(self, prompt: Sequence[Part], answer: Sequence[Part]) -> Example:
        """Lay out `<bos> USER: prompt ASSISTANT: answer <eos>`; only the answer and `<eos>` are trained."""
        return self.conversation([(prompt, answer)])

    def conversation(self, turns: Sequence[Turn]) -> Example:
        """Lay out `<bos> USER: prompt ASSISTANT: answer <eos> USER: ...`; each answer and its `<eos>` are trained."""
        pieces = [Piece([self.bos], trained=False), *(piece for turn in turns for piece in self._turn(*turn))]
        return self._example(pieces)

    def _turn(self, prompt: Sequence[Part], answer: Sequence[Part]) -> list[Piece]:
        return [*self._question(prompt), *self._pieces(answer, " "), Piece([self.eos])]

    def _question(self, parts: Sequence[Part]) -> list[Piece]:
        pieces = [Piece(self.encode_text(USER)), *self._pieces(parts, " "), Piece(self.encode_text(ASSISTANT))]
        return [replace(piece, trained=False) for piece in pieces]

    def _pieces(self, parts: Sequence[Part], space: str = "") -> list[Piece]:
        """Turn parts into tokens, with `space` before every text."""
        return [
            Piece(self.encode_text(space + part), text=True)
            if isinstance(part, str)
            else Piece(self.encode_image(part))
            for part in parts
        ]

    def _example(self, pieces: list[Piece]) -> Example:
        texts = [piece.tokens for piece in pieces if piece.text]
        length = sum(len(piece.tokens) for piece in pieces)
        if self.longest is not None and length > self.longest:
            least = length - sum(map(len, texts)) + bool(texts)
            if least > self.longest:
                raise ValueError(
                    f"an example takes {least} tokens with one of its text, {self.longest} are the most: {REMEDY}"
                )
            for _ in range(length - self.longest):
                max(texts, key=len).pop()
        labels = [token if piece.trained else IGNORED for piece in pieces for token in piece.tokens]
        return Example(torch.tensor([token for piece in pieces for token in piece.tokens]), torch.tensor(labels))


def whole_text(text: str) -> str:
    """Return a text with U+FFFD for each half of a character, such as a terminal in Latin-1 makes.

    Example:
        >>> whole_text("caf\\udce9") == "caf\\ufffd", whole_text("caf\\u00e9 \\U0001f98a") == "caf\\u00e9 \\U0001f98a"
        (True, True)
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Pad examples on the right to the longest one.

    A causal model needs no attention mask for padding on the right: no trained position sees it.

    Returns:
        `input_ids` and `labels`, int64 [B, L]; labels of the padding are -100.

    Example:
        >>> examples = [Example(torch.tensor([n] * n), torch.tensor([n] * n)) for n in (2, 1)]
        >>> {name: tensor.tolist() for name, tensor in collate(examples, pad_id=0).items()}
        {'input_ids': [[2, 2], [1, 0]], 'labels': [[2, 2], [1, -100]]}
    """
    return {
        "input_ids": pad_sequence([example.input_ids for example in examples], True, pad_id),
        "labels": pad_sequence([example.labels for example in examples], True, IGNORED),
    }
