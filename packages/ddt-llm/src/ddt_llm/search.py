"""Search at inference: several images are drawn of a prompt, from coarse to fine, and a verifier says which go on.

Ids from coarse to fine make a prefix worth judging (SoTo searches so). Shape letters: B images, K visual tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddt_llm.head import head_nats
from ddt_llm.limits import PositiveInt, check_settings
from ddt_llm.model import Generation, MultimodalLM
from ddt_llm.reward import Reward
from ddt_llm.self_test import evaluating
from ddt_llm.sequences import collate
from ddt_llm.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class Search:
    """Best of `branch` without `prefixes`; with them a beam over prefixes of ids.

    Raises:
        ValueError: If a value is outside its range, or prefixes do not grow.

    Example:
        >>> Search(branch=8).calls, Search(branch=4, width=2, prefixes=(1, 4)).calls
        (8, 20)
    """

    branch: PositiveInt = 8  # images drawn from each prefix, at first from none
    width: PositiveInt = 1  # prefixes that are kept after a round
    prefixes: tuple[PositiveInt, ...] = ()  # how many ids are kept after each round, the coarsest; such as [1, 2, 4, 8]
    lookahead: bool = True  # whole images are judged; else what their prefix shows by itself

    def __post_init__(self):
        check_settings(self)
        if any(after <= before for before, after in pairwise(self.prefixes)):
            raise ValueError(f"prefixes {list(self.prefixes)} must grow: each round keeps more ids")

    @property
    def calls(self) -> int:
        """Images that the verifier sees, of one prompt."""
        return self.branch * (1 + self.width * len(self.prefixes))


class Found(NamedTuple):
    """The best image of a prompt, what the verifier said of it, and how many it saw."""

    best: Generation
    reward: float
    calls: int


class CaptionLikelihood:
    """A verifier that needs no judge: how likely the model itself finds the prompt as caption of an image.

    Example:
        >>> CaptionLikelihood.__name__  # search(lm, "a red fox", codec, CaptionLikelihood(lm), Search(branch=8))
        'CaptionLikelihood'
    """

    def __init__(self, lm: MultimodalLM):
        self.lm = lm

    @torch.inference_mode()
    def __call__(self, images: Tensor | None, ids: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the mean log-probability of a token of each prompt [B], given its image."""
        sequences, vocabulary, model = self.lm.sequences, self.lm.vocabulary, self.lm.model
        lay_out = sequences.image_to_text if self.lm.template == "caption" else self._described
        batch = collate([lay_out(*pair) for pair in zip(ids.cpu(), prompts, strict=True)], sequences.pad)
        tokens, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
        after = (tokens == vocabulary.eoi).cumsum(1) > 0
        trained = (after[:, 1:] & (labels[:, 1:] >= 0) & (labels[:, 1:] < vocabulary.text_size)).contiguous()
        with evaluating(model):
            hidden = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            nats = head_nats(model, hidden[trained], labels[:, 1:][trained])
        sums = torch.zeros(len(prompts), device=nats.device).index_add_(0, trained.nonzero()[:, 0], nats)
        return -sums / trained.sum(1)

    def _described(self, ids: Tensor, prompt: str):
        return self.lm.sequences.instruction([ids, "describe the picture"], [prompt])


def search(
    lm: MultimodalLM,
    prompt: str,
    visual: VisualTokenizer | None,
    verifier: Reward,
    how: Search,
    seed: int = 0,
    **settings: Any,
) -> Found:
    """Draw images of a prompt in rounds, and return the one that the verifier finds best.

    Each round draws `branch` images from every prefix that is kept, has them judged, and keeps the prefixes of the best
    ones. The first image is that of `lm.generate` with this seed; the others take the seeds after it, so leave
    `how.calls` between the seeds of two searches.

    Args:
        visual: Draws images for the verifier, and for the answer; None, if ids are enough for both.
        verifier: See `Reward`.
        settings: Of `Sampling`, and `denoising`.

    Raises:
        ValueError: If a prefix is no shorter than an image, or the model does not write coarse ids first.
    """
    count = lm.vocabulary.num_tokens
    if how.prefixes and (how.prefixes[-1] >= count or lm.vocabulary.visual_order != "coarse_to_fine"):
        raise ValueError(
            f"prefixes {list(how.prefixes)} must be shorter than an image ({count} ids) of a model that writes coarse "
            f"ids first, not {lm.vocabulary.visual_order}"
        )
    ends = [*how.prefixes, count]
    kept: list[Tensor] = []  # images whose prefixes are kept
    best: tuple[float, Generation] | None = None
    passes = 0
    for turn, end in enumerate(ends):
        start = ends[turn - 1] if turn else 0
        sketches = [ids for ids in kept for _ in range(how.branch)] or None
        texts = [prompt] * (how.branch if sketches is None else len(sketches))
        first = seed + how.branch * (1 + how.width * (turn - 1)) if turn else seed
        begun = {} if sketches is None else {"sketches": sketches, "keep_tokens": start}
        drawn = lm.generate_batch(texts, visual, output="image", seed=first, **begun, **settings)
        passes += sum(each.passes for each in drawn)
        ids = torch.cat([each.ids for each in drawn])
        whole = how.lookahead or end == count
        images = None
        if visual is not None:
            images = torch.cat([each.images for each in drawn]) if whole else visual.decode(ids, keep_tokens=end)
        rewards = verifier(images, ids, texts).tolist()
        ranked = sorted(range(len(drawn)), key=lambda i: -rewards[i])
        if whole and (best is None or rewards[ranked[0]] > best[0]):
            best = rewards[ranked[0]], drawn[ranked[0]]
        # The best of each prefix goes on, not twins of it.
        prefixes: dict[tuple[int, ...], Tensor] = {}
        for i in ranked:
            prefixes.setdefault(tuple(lm.vocabulary.to_tokens(ids[i])[:end].tolist()), ids[i])
        kept = list(prefixes.values())[: how.width]
    reward, image = best
    return Found(Generation(image.text, image.ids, image.images, passes), reward, how.calls)
