"""Reading an answer while it is written: text as it appears, and images from coarse to fine.

Shape letters: K visual tokens of an image, n of them written so far; H, W space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ddt_llm.visual_tokenizer import VisualTokenizer
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Event:
    """What one step added to an answer: text, or a token of an image."""

    text: str = ""
    ids: Tensor | None = None  # int64 [n], what is written of an image, in tokenizer order; whole where n is K
    image: Tensor | None = None  # float32 [3, H, W] in [-1, 1], drawn from these ids: a preview where n is below K


class Reader:
    """Turns the tokens of one growing answer into events.

    Args:
        visual: Draws images; None gives ids alone.
        preview_every: Tokens of an image between two previews; 0 draws whole images only.
    """

    def __init__(
        self,
        vocabulary: VisualVocabulary,
        text_tokenizer: "PreTrainedTokenizerFast",
        visual: VisualTokenizer | None,
        preview_every: int,
    ):
        self.vocabulary, self.text_tokenizer, self.visual = vocabulary, text_tokenizer, visual
        self.preview_every = preview_every if vocabulary.visual_order == "coarse_to_fine" else 0
        self.read_tokens = 0
        self.image: list[int] = []  # tokens of the image that is being read
        self.text: list[int] = []  # tokens of the text since the last image
        self.shown = 0  # characters of it that an event held

    def read(self, tokens: Sequence[int]) -> Iterator[Event]:
        """Yield the events of those tokens of an answer that were not there at the last call."""
        new, self.read_tokens = tokens[self.read_tokens :], len(tokens)
        for token in new:
            if self.vocabulary.visual.start <= token < self.vocabulary.visual.stop:
                self.image.append(token)
                yield self._image_event()
            elif token >= self.vocabulary.text_size:  # <boi> or <eoi>
                self.image, self.text, self.shown = [], [], 0
            else:
                self.text.append(token)
                text = self.text_tokenizer.decode(self.text, skip_special_tokens=True)
                if len(text) > self.shown and not text.endswith("\ufffd"):  # else in the middle of a character
                    yield Event(text[self.shown :])
                    self.shown = len(text)

    def _image_event(self) -> Event:
        ids = self.vocabulary.to_ids(torch.tensor(self.image))
        missing = self.vocabulary.num_tokens - len(ids)
        if self.visual is None or (missing and (not self.preview_every or len(ids) % self.preview_every)):
            return Event(ids=ids)
        # Id 0 stands in for what is missing: written from coarse to fine, the fine end, which comes first.
        keep = {"keep_tokens": len(ids)} if missing else {}
        return Event(ids=ids, image=self.visual.decode(F.pad(ids, (missing, 0))[None], **keep)[0])
