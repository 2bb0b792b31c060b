"""Denoising: answers written block by block, the tokens of a block in parallel and in a few steps.

Shape letters: B samples, R rows of the network's batch (B, or 2B with the unconditional branch), A tokens to be kept,
N positions of a block, V candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from ddt_llm.corruption import shifted
from ddt_llm.denoise_config import DenoiseConfig
from ddt_llm.generation import Chooser, Request, Sampling, Writer, sample
from ddt_llm.limits import PositiveFloat, PositiveInt, check_settings
from ddt_llm.network import Network, looking_network_for
from ddt_llm.positions import most_positions
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """How the tokens of a block become known.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> Denoising(steps=8).of_blocks((1, 1, 6, 8))
        [1, 1, 3, 3]
    """

    steps: PositiveInt = 8  # passes of the network for an image, spread over its blocks
    blocks: tuple[PositiveInt, ...] = ()  # of an image, coarse ids first; none are those that the model was trained on
    # Tokens that are surer than this become known at once, so that fewer steps may do; where none is, as many of the
    # surest as the schedule says (Dimple, arXiv:2505.16990). None: always those of the schedule.
    threshold: Annotated[float, Interval(ge=0, le=1)] | None = None
    remask: bool = False  # known tokens that are no longer among the surest are masked again
    shift: PositiveFloat = 1.0  # above 1 the schedule makes fewer tokens known at first
    text_steps: PositiveInt = 4  # passes for a block of text, where the model denoises text

    def __post_init__(self):
        check_settings(self)

    def of_blocks(self, blocks: Sequence[int]) -> list[int]:
        """Spread the steps over blocks: one each, the next always where most tokens are left for a step.

        Raises:
            ValueError: If there are fewer steps than blocks.
        """
        if self.steps < len(blocks):
            raise ValueError(f"steps ({self.steps}) must be at least the number of blocks, {len(blocks)}")
        steps = [1] * len(blocks)
        for _ in range(self.steps - len(blocks)):
            left = [size / taken if taken < size else 0 for size, taken in zip(blocks, steps, strict=True)]
            steps[left.index(max(left))] += 1
        return steps

    def schedule(self, count: int, steps: int) -> list[int]:
        """Return how many of `count` tokens shall be known after each step, at least one more each time.

        Example:
            >>> Denoising().schedule(8, 4), Denoising(shift=3.0).schedule(8, 4)
            ([2, 4, 6, 8], [1, 2, 4, 8])
        """
        wanted = (shifted(torch.arange(1, steps + 1) / steps, self.shift) * count).round().long().tolist()
        return [min(count, max(each, least)) for least, each in enumerate(wanted, 1)]


@torch.inference_mode()
def stream_denoised(
    model: "PreTrainedModel",
    vocabulary: VisualVocabulary,
    requests: Sequence[Request],
    sampling: Sampling,
    denoising: Denoising,
    *,
    eos: int,
    unconditional: Sequence[int] = (),
    never: Sequence[int] = (),
) -> Iterator[list[Writer]]:
    """Write an answer for every request: images by blocks; text in order or, if the model denoises text, by blocks.

    A sample depends on its own request alone. Images are written together, answers with text one after the other.
    The arguments are those of `stream_tokens`, and so are the writers that come out, here after each block.

    Raises:
        ValueError: If the model was not adapted, blocks or steps do not fit, a prompt leaves no room for an answer, or
            the model's logits are not finite.
    """
    config = DenoiseConfig.from_config(model.config)
    sizes = DenoiseConfig(blocks=denoising.blocks or config.blocks).of_image(vocabulary.num_tokens)
    denoising.of_blocks(sizes)  # refuses what it refuses
    positions = most_positions(model.config) or 2**31
    writers = [Writer(vocabulary, request, sampling, eos, positions) for request in requests]
    chooser = Chooser(model, vocabulary, never)
    alike = {(request.output, len(request.image_start)) for request in requests}
    together = len(alike) == 1 and requests[0].output == "image"
    groups = [range(len(writers))] if together else [range(i, i + 1) for i in range(len(writers))]
    for group in groups:
        some = [requests[i] for i in group], [writers[i] for i in group]
        for _ in Denoiser(config, denoising, sizes, chooser, *some, unconditional).write():
            yield writers


class Denoiser:
    """Writes answers that are in the same state, together."""

    def __init__(
        self,
        config: DenoiseConfig,
        denoising: Denoising,
        sizes: Sequence[int],
        chooser: Chooser,
        requests: Sequence[Request],
        writers: Sequence[Writer],
        unconditional: Sequence[int],
    ):
        self.config, self.denoising, self.sizes = config, denoising, sizes
        self.chooser, self.vocabulary = chooser, chooser.vocabulary
        self.requests, self.writers = requests, writers
        self.random = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt + writer.opening for request, writer in zip(requests, writers, strict=True)]
        if guided := any(writer.guided for writer in writers):
            prompts += [[*unconditional, *writer.opening] for writer in writers]
        self.rows = [(i, len(writers) + i) if guided else (i,) for i in range(len(writers))]
        most = max(writer.most_left for writer in writers) + config.text_block
        self.network: Network = looking_network_for(chooser.model, prompts, most)
        self.hidden = self.network.start()
        self.unread = torch.empty(len(prompts), 0, dtype=torch.long, device=chooser.model.device)

    def write(self) -> Iterator[None]:
        """Write all answers to their ends, a block or a token of text between two yields."""
        writer, vocabulary = self.writers[0], self.vocabulary
        visual = torch.arange(vocabulary.visual.start, vocabulary.visual.stop, device=self.unread.device)
        text = torch.tensor([*range(vocabulary.text_size), vocabulary.boi], device=self.unread.device)
        while not all(each.done for each in self.writers):
            if writer.visual_left:
                done = vocabulary.num_tokens - writer.visual_left
                ends = [end for end in accumulate(self.sizes) if end > done]
                starts = [done, *ends[:-1]]
                sizes = [end - start for start, end in zip(starts, ends, strict=True)]
                for start, size, steps in zip(starts, sizes, self.denoising.of_blocks(sizes), strict=True):
                    self.keep(self.denoise(visual, start, size, steps, self.visual_logits))
                    yield
            elif writer.forced is None and self.config.text_block:
                size = min(self.config.text_block, writer.positions_left)
                steps = self.denoising.text_steps
                block = self.denoise(text, len(writer.tokens), size, steps, self.text_logits)
                ends = torch.isin(block[0], torch.tensor([writer.eos, vocabulary.boi], device=block.device)).nonzero()
                self.keep(block[:, : int(ends[0]) + 1] if len(ends) else block)
                yield
            else:
                if self.unread.shape[1]:
                    self.hidden = self.network.look(self.unread, self.unread[:, :0])[:, -1]
                tokens = self.chooser.choose(self.hidden, self.writers, self.rows)
                writer.passes += 1
                self.unread = self.unread[:, :0]
                self.keep(torch.tensor(tokens, device=self.unread.device)[:, None])
                yield

    def keep(self, tokens: Tensor) -> None:
        """Write tokens [B, A], which the network is to read with what comes next."""
        for writer, row in zip(self.writers, tokens.tolist(), strict=True):
            for token in row:
                if not writer.done:
                    writer.write(token)
        self.unread = torch.cat([self.unread, tokens.repeat(len(self.unread) // len(tokens), 1)], dim=1)

    def visual_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [B, N, V] of the codes from hidden states [R, N, D], guided where that is asked for."""
        each = [self.chooser._visual_logits(states, self.rows, self.writers) for states in hidden.unbind(1)]
        return torch.stack(each, dim=1)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [B, N, text_size + 1] of text and, last, of `<boi>`, from hidden states [R, N, D]."""
        may_open = torch.tensor([writer.may_open_image for writer in self.writers], device=hidden.device)
        seen = hidden[[row for row, *_ in self.rows]]
        return torch.stack([self.chooser._text_logits(states, may_open) for states in seen.unbind(1)], dim=1)

    def denoise(
        self, candidates: Tensor, start: int, size: int, steps: int, logits_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Denoise a block of `size` positions: tokens int64 [B, N].

        Args:
            candidates: Tokens [V] that may stand there; codes count them, -1 is unknown.
            start: Place of the block in what `Request.given` gives.
            logits_of: Turns hidden states [R, N, D] into logits [B, N, V].
        """
        device, mask = candidates.device, self.vocabulary.mask
        given = torch.stack([self.given(request, candidates, start, size) for request in self.requests])
        uniforms = [torch.rand(steps + 1, size, 3, generator=random) for random in self.random]
        begin, *uniforms = torch.stack(uniforms, dim=1).to(device)
        visual = logits_of == self.visual_logits
        choice = self.writers[0].sampling.visual if visual else self.writers[0].sampling.text
        metric = visual and self.config.path == "metric"
        codes = given.where(given >= 0, (begin[..., 0] * len(candidates)).long()) if metric else given
        for step, uniform in enumerate(uniforms):
            tokens = candidates[codes].where(codes >= 0, mask).repeat(len(self.unread) // len(codes), 1)
            logits = logits_of(self.network.look(self.unread, tokens)[:, self.unread.shape[1] :])
            self.unread = self.unread[:, :0]
            for writer, row in zip(self.writers, codes, strict=True):
                writer.passes += metric or bool((row < 0).any())
            drawn = sample(logits.flatten(0, 1), uniform[..., 0].flatten(), choice).view_as(codes)
            if metric:
                codes = given.where(given >= 0, self.moved(codes, drawn, step, steps, uniform[..., 1:]))
            else:
                codes = self.known(codes, drawn, given >= 0, logits, step, steps)
                if (codes >= 0).all():
                    break
        return candidates[codes]

    def given(self, request: Request, candidates: Tensor, start: int, size: int) -> Tensor:
        """Return the codes [N] that stand fast in a block, -1 where none does.

        Raises:
            ValueError: If a token that is given may not stand there.
        """
        codes = torch.full((size,), -1, device=candidates.device)
        for place, token in enumerate(request.given[start : start + size]):
            if token is not None:
                if not len(found := (candidates == token).nonzero()):
                    raise ValueError(
                        f"token {token} is given at place {start + place} of an answer, where none may stand"
                    )
                codes[place] = found[0, 0]
        return codes

    def known(self, codes: Tensor, drawn: Tensor, fixed: Tensor, logits: Tensor, step: int, steps: int) -> Tensor:
        """Make more of the codes [B, N] known, of those drawn the surest; -1 is unknown. At the last step none is.

        How sure a code is says its probability without temperature.
        """
        unknown = codes < 0
        found = torch.where(unknown, drawn, codes)
        if step == steps - 1:
            return found
        sure = logits.softmax(-1).gather(-1, found[..., None])[..., 0]
        stays = fixed if self.denoising.remask else ~unknown
        sure = sure.masked_fill(stays, torch.inf)
        wanted = [n + self.denoising.schedule(fixed.shape[1] - n, steps)[step] for n in fixed.sum(1).tolist()]
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(1)
        become = rank < torch.tensor(wanted, device=codes.device)[:, None]
        if self.denoising.threshold is not None:
            over = sure > self.denoising.threshold
            become = torch.where((over & ~stays).any(1, keepdim=True), over, become)
        ready = ~unknown.any(1, keepdim=True)  # an answer that is ready does not change while others are not
        return found.where(become | ready, -1)

    def moved(self, codes: Tensor, drawn: Tensor, step: int, steps: int, uniform: Tensor) -> Tensor:
        """Move codes [B, N] along the metric path towards those drawn; the last step arrives."""
        if step == steps - 1:
            return drawn
        now, then = shifted(torch.tensor([step / steps, (step + 1) / steps]), self.denoising.shift).tolist()
        vectors = self.chooser.model.get_input_embeddings().weight[self.vocabulary.visual].float()
        time = torch.full(codes.shape, now, device=codes.device)
        return self.config.metric.jump(time, then - now, codes, drawn, vectors, uniform)
