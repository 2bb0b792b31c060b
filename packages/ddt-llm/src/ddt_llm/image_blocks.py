"""The grammar of images for engines that draw tokens by themselves: what may come next, as a mask on logits.

Shape letters: B batch, L tokens so far, V rows of the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddt_llm.generation import Output
from ddt_llm.limits import check_setting
from ddt_llm.vocabulary import VisualVocabulary


class ImageBlocks:
    """A logits processor: `<boi>`, exactly K visual tokens, `<eoi>`; and no visual token outside of that.

    It keeps no state, so it serves any number of answers, and is what transformers' `generate(logits_processor=[...])`
    and llama-cpp-python's `logits_processor` call. It does not know how long an answer may become: leave room for an
    image.

    Args:
        eos: The token that ends an answer.
        never: Text tokens that are never written, such as `<pad>`.
        output: "image" is one image and nothing else, "text" no image, "auto" leaves it to the model.
        prompt_length: Tokens before the answer; needed for "image" alone.

    Example:
        >>> vocabulary = VisualVocabulary(text_size=4, codebook_size=2, num_tokens=2)  # <boi> is 6, <eoi> 7
        >>> blocks = ImageBlocks(vocabulary, eos=1)
        >>> blocks(torch.tensor([[2, 3], [2, 6], [4, 5]]), torch.zeros(3, 8)).isfinite().int().tolist()
        [[1, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 1, 0]]
    """

    def __init__(
        self,
        vocabulary: VisualVocabulary,
        eos: int,
        never: Sequence[int] = (),
        output: Output = "auto",
        prompt_length: int = 0,
    ):
        check_setting("output", Output, output)
        self.vocabulary, self.eos, self.never = vocabulary, eos, list(never)
        self.output, self.prompt_length = output, prompt_length

    def hidden(self, prompt: Sequence[int], answer: Sequence[int], size: int) -> Tensor:
        """Return which of V tokens may not follow a prompt and the answer so far: bool [V], on the CPU."""
        vocabulary = self.vocabulary
        hidden = torch.ones(size, dtype=torch.bool)
        far = vocabulary.num_tokens + 1
        last = [*prompt[-far:], *answer[-far:]][-far:]
        written = next((n for n, token in enumerate(reversed(last)) if token in (vocabulary.boi, vocabulary.eoi)), None)
        if written is not None and last[-1 - written] == vocabulary.boi:  # an image is open
            hidden[vocabulary.visual if written < vocabulary.num_tokens else vocabulary.eoi] = False
        elif self.output == "image":
            hidden[self.eos if answer else vocabulary.boi] = False
        else:
            hidden[: vocabulary.text_size] = False
            hidden[self.never] = True
            hidden[vocabulary.boi] = self.output == "text"
        return hidden

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores that are -inf where a token may not come next.

        Args:
            input_ids: Prompt and answer so far: tensors [B, L], or NumPy [L].
            scores: [B, V], or NumPy [V].
        """
        cut = self.prompt_length
        if isinstance(scores, Tensor):
            rows = [self.hidden(row[:cut], row[cut:], scores.shape[-1]) for row in input_ids.tolist()]
            return scores.masked_fill(torch.stack(rows).to(scores.device), -torch.inf)
        row, scores = input_ids.tolist(), scores.copy()
        scores[self.hidden(row[:cut], row[cut:], len(scores)).numpy()] = -torch.inf
        return scores
