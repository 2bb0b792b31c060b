"""Generation: text -> <boi> -> exactly K visual ids -> <eoi> -> text, for a batch of samples in different states.

Shape letters: B samples, R rows of the network's batch (B, or 2B with the unconditional branch), L prompt length,
K visual tokens of an image, V candidates of one choice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from ddt_llm.head import head_logits
from ddt_llm.limits import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed, check_settings
from ddt_llm.network import network_for
from ddt_llm.positions import most_positions
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Output = Literal["auto", "image", "text"]
Probability = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How one token is chosen.

    Raises:
        ValueError: If a value is outside its range.
    """

    temperature: NonNegativeFloat = 1.0  # 0 takes the likeliest token
    top_k: NonNegativeInt = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: Probability = 1.0  # keep the likeliest tokens that together have this probability

    def __post_init__(self):
        check_settings(self)
        # Beyond these, dividing by the temperature leaves what a float can hold.
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"temperature ({self.temperature}) must be 0, or lie in 1e-6 to 1e6")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is written.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> Sampling(temperature=0.7, text_temperature=0).text
        Choice(temperature=0, top_k=0, top_p=1.0)
    """

    guidance_scale: NonNegativeFloat = 1.0  # s in uncond + s * (cond - uncond), inside images only; 1 is no guidance
    temperature: NonNegativeFloat = 1.0  # these three: see Choice
    top_k: NonNegativeInt = 0
    top_p: Probability = 1.0
    text_temperature: NonNegativeFloat | None = None  # the same for text; None takes that of images
    text_top_k: NonNegativeInt | None = None
    text_top_p: Probability | None = None
    max_text_tokens: PositiveInt = 64
    max_images: PositiveInt = 4  # of one answer, where output is "auto"

    def __post_init__(self):
        check_settings(self)
        if self.guidance_scale > 1e4:
            raise ValueError(f"guidance_scale ({self.guidance_scale}) must lie in 0 to 1e4")
        assert self.visual and self.text  # made here once, to refuse what they refuse

    @cached_property
    def visual(self) -> Choice:
        """Choice of tokens inside images."""
        return Choice(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    @cached_property
    def text(self) -> Choice:
        """Choice of text tokens."""
        own = {"temperature": self.text_temperature, "top_k": self.text_top_k, "top_p": self.text_top_p}
        return replace(self.visual, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class Request:
    """One sample to generate: its prompt, its seed and what it may write ("image" is one image and nothing else)."""

    prompt: list[NonNegativeInt]
    seed: Seed = 0
    output: Output = "auto"
    image_start: tuple[NonNegativeInt, ...] = ()  # output "image": tokens that the image begins with, fewer than K
    # Tokens that stand fast where a model denoises, None where none does: of the image or, with output "text", of that.
    given: tuple[NonNegativeInt | None, ...] = ()

    def __post_init__(self):
        check_settings(self)


class Writer:
    """The grammar of one answer: knows which tokens may come next and when the answer ends.

    It also has the random numbers of the answer, one a position, which depend on its own seed alone. `positions` is the
    most tokens that the model can see, those of the prompt included.

    Raises:
        ValueError: If the prompt leaves no room for an answer.
    """

    def __init__(self, vocabulary: VisualVocabulary, request: Request, sampling: Sampling, eos: int, positions: int):
        self.vocabulary, self.sampling = vocabulary, sampling
        self.output = request.output
        self.eos = eos
        self.tokens: list[int] = []
        self.passes = 0  # of the network, after that over the prompt
        self.visual_left = 0  # visual ids until the open image is complete
        self.text_left = sampling.max_text_tokens
        self.images_left = {"auto": sampling.max_images, "image": 1, "text": 0}[request.output]
        self.positions_left = positions - len(request.prompt)
        self.forced: int | None = None  # the next token where the grammar leaves no choice
        self.done = False
        if self.positions_left < (vocabulary.image_length if self.output == "image" else 1):
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens and the model {positions} positions: "
                f"no room for an answer (an image takes {vocabulary.image_length}), shorten the prompt"
            )
        longest = min(positions, sampling.max_text_tokens + sampling.max_images * vocabulary.image_length)
        self.uniforms = torch.rand(longest, generator=torch.Generator().manual_seed(request.seed)).tolist()
        # The tokens an answer must begin with are read together with the prompt, in one pass of the network.
        self.opening = [vocabulary.boi, *request.image_start] if self.output == "image" else []
        for token in self.opening:
            self.write(token)

    @property
    def guided(self) -> bool:
        """Whether an image of it may need the unconditional branch; asked before anything is written."""
        return self.sampling.guidance_scale != 1 and bool(self.opening or self.images_left)

    @property
    def may_open_image(self) -> bool:
        """Whether `<boi>` may come next: never for an image that could not be finished."""
        return self.images_left > 0 and self.positions_left >= self.vocabulary.image_length

    @property
    def most_left(self) -> int:
        """The most tokens that may follow."""
        if self.output == "image":
            return self.visual_left
        return min(self.positions_left, self.text_left + self.images_left * self.vocabulary.image_length)

    def write(self, token: int) -> None:
        """Append a token and move to the next state."""
        self.tokens.append(token)
        self.positions_left -= 1
        self.forced = None
        if token == self.vocabulary.boi:
            self.visual_left = self.vocabulary.num_tokens
            self.images_left -= 1
        elif self.visual_left:
            self.visual_left -= 1
            if self.visual_left == 0:
                self.forced = self.vocabulary.eoi
                if self.output == "image":  # nothing follows: the network need not read it
                    self.write(self.forced)
            return
        if token == self.eos or (token == self.vocabulary.eoi and self.output == "image"):
            self.done = True
        elif not self.visual_left:
            self.text_left -= token != self.vocabulary.eoi
            self.done = self.positions_left == 0 or (self.text_left == 0)


@torch.inference_mode()
def stream_tokens(
    model: "PreTrainedModel",
    vocabulary: VisualVocabulary,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    eos: int,
    unconditional: Sequence[int] = (),
    never: Sequence[int] = (),
) -> Iterator[list[Writer]]:
    """Write one answer for every request, a token of each at a time.

    A sample depends on its own request alone, not on its neighbours in the batch (up to rounding).

    Args:
        unconditional: Prompt of the unconditional branch, needed where `guidance_scale` is not 1.
        never: Text tokens that are never written, such as `<pad>`.

    Yields:
        After each step the writers of all requests, the same objects every time: `tokens` is an answer without its
        prompt, with visual ids in runs of K between `<boi>` and `<eoi>`.

    Raises:
        ValueError: If a prompt leaves no room for an answer, or the model's logits are not finite or cannot be had.
    """
    positions = most_positions(model.config) or 2**31
    writers = [Writer(vocabulary, request, sampling, eos, positions) for request in requests]
    if any(request.given for request in requests):
        raise ValueError("tokens are given that stand between others: a model needs denoising= to fill in the others")
    chooser = Chooser(model, vocabulary, never)

    # Rows of the batch: the prompts, and under guidance as many without their condition.
    prompts = [request.prompt + writer.opening for request, writer in zip(requests, writers, strict=True)]
    guided = any(writer.guided for writer in writers)
    if guided:
        prompts += [[*unconditional, *writer.opening] for writer in writers]
    rows = [(i, len(writers) + i) if guided else (i,) for i in range(len(writers))]
    network = network_for(model, prompts, max(writer.most_left for writer in writers))

    # One token for every answer, then one pass of the network over all of them.
    hidden = network.start()
    while True:
        tokens = chooser.choose(hidden, writers, rows)
        for writer, token in zip(writers, tokens, strict=True):
            if not writer.done:
                writer.write(token)
                writer.passes += not writer.done
        yield writers
        if all(writer.done for writer in writers):
            return
        hidden = network.step(torch.tensor(tokens * 2 if guided else tokens, device=model.device))


class Chooser:
    """Picks the next token of every sample: forced, visual or text. Other rows of the head are not computed.

    Args:
        never: Text tokens that are never picked.
    """

    def __init__(self, model: "PreTrainedModel", vocabulary: VisualVocabulary, never: Sequence[int]):
        self.model, self.vocabulary = model, vocabulary
        self.never = torch.tensor(never, dtype=torch.long, device=model.device)

    def choose(self, hidden: Tensor, writers: Sequence[Writer], rows: Sequence[Sequence[int]]) -> list[int]:
        """Choose the next token of each of B samples.

        Args:
            hidden: Hidden states [R, D] at the last position of each row.
            rows: The row of each sample and, under guidance, the one without its condition.
        """
        # Finished and forced samples need no choice; the others are split by the rows of the head that may come next.
        tokens = {i: writer.eos if writer.forced is None else writer.forced for i, writer in enumerate(writers)}
        free = [i for i, writer in enumerate(writers) if not writer.done and writer.forced is None]
        visual = [i for i in free if writers[i].visual_left]
        text = [i for i in free if not writers[i].visual_left]

        if visual:
            logits = self._visual_logits(hidden, [rows[i] for i in visual], [writers[i] for i in visual])
            picks = self._sample(logits, [writers[i] for i in visual], [writers[i].sampling.visual for i in visual])
            tokens |= zip(visual, (self.vocabulary.text_size + picks).tolist(), strict=True)
        if text:
            may_open = torch.tensor([writers[i].may_open_image for i in text], device=hidden.device)
            logits = self._text_logits(hidden[[rows[i][0] for i in text]], may_open)
            picks = self._sample(logits, [writers[i] for i in text], [writers[i].sampling.text for i in text])
            picks = picks.where(picks < self.vocabulary.text_size, self.vocabulary.boi)
            tokens |= zip(text, picks.tolist(), strict=True)
        return list(tokens.values())

    def _visual_logits(self, hidden: Tensor, rows: Sequence[Sequence[int]], writers: Sequence[Writer]) -> Tensor:
        visual = self.vocabulary.visual
        logits = head_logits(self.model, hidden[[row for row, *_ in rows]], visual)
        if guided := [i for i, (_, *blind) in enumerate(rows) if blind]:
            blind = head_logits(self.model, hidden[[rows[i][1] for i in guided]], visual)
            scale = torch.tensor([[writers[i].sampling.guidance_scale] for i in guided], device=hidden.device)
            logits[guided] = blind + scale * (logits[guided] - blind)
        return logits

    def _text_logits(self, hidden: Tensor, may_open: Tensor) -> Tensor:
        """Compute logits [B, text_size + 1] of the text tokens and, last, of `<boi>`."""
        boi = self.vocabulary.boi
        text = head_logits(self.model, hidden, slice(self.vocabulary.text_size))
        text[:, self.never] = -torch.inf
        opening = head_logits(self.model, hidden, slice(boi, boi + 1))
        return torch.cat([text, opening.masked_fill(~may_open[:, None], -torch.inf)], dim=1)

    def _sample(self, logits: Tensor, writers: Sequence[Writer], choices: Sequence[Choice]) -> Tensor:
        """Draw a candidate for each writer, from the random number of its own position, whatever its neighbours do."""
        uniforms = torch.tensor([writer.uniforms[len(writer.tokens)] for writer in writers], device=logits.device)
        picks = torch.empty(len(writers), dtype=torch.long, device=logits.device)
        for choice in dict.fromkeys(choices):
            those = [i for i, each in enumerate(choices) if each == choice]
            picks[those] = sample(logits[those], uniforms[those], choice)
        return picks


def sample(logits: Tensor, uniform: Tensor, choice: Choice) -> Tensor:
    """Draw one candidate a row by inverting the cumulative distribution.

    Args:
        logits: float32 [B, V]; -inf is never drawn.
        uniform: float32 [B] in [0, 1), the row's random number.
        choice: Temperature, top-k and top-p, applied in this order.

    Returns:
        Indices, int64 [B].

    Raises:
        ValueError: If a row holds NaN or infinity, or nothing that may be drawn.
    """
    if not logits.amax(-1).isfinite().all():
        raise ValueError("the logits of the language model are not finite: its weights hold NaN or infinite numbers")
    if choice.temperature == 0:
        return logits.argmax(-1)

    # Temperature, top-k, top-p.
    logits = logits / choice.temperature
    if 0 < choice.top_k < logits.shape[-1]:
        least = logits.topk(choice.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if choice.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= choice.top_p
        probabilities = probabilities.masked_fill(outside.gather(-1, order.argsort(-1)), 0)

    # The first candidate at which the cumulative distribution exceeds the random number.
    cumulative = probabilities.cumsum(-1)
    # Just below 1, so that rounding cannot reach past the last candidate with any probability.
    target = uniform * (1 - 1e-6) * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
