"""Continuous batching: answers are written together, a token of each at a step, and come and go between steps.

That is scheduling by iteration (Orca, OSDI 2022): no answer waits for the longest of its batch.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ddt_llm.generation import Chooser, Request, Sampling, Writer
from ddt_llm.positions import most_positions
from ddt_llm.slots import slots_for
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ContinuousBatch:
    """Writes the answers of requests that differ in everything: prompt, length, seed, settings, text or images.

    Every answer is that of `MultimodalLM.generate` alone with the same seed, whatever is written beside it (up to
    rounding). `MultimodalLM.continuous_batch` makes one.

    Args:
        slots: Answers that are written at once; others wait.
        longest: Most tokens of a request, with all that its answer may hold; by default the model's positions.
        eos, unconditional, never: As for `ddt_llm.generation.stream_tokens`.

    Raises:
        ValueError: If the model cannot write, or has no limit and `longest` is not given.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: VisualVocabulary,
        slots: int,
        longest: int | None = None,
        *,
        eos: int,
        unconditional: Sequence[int] = (),
        never: Sequence[int] = (),
    ):
        self.model, self.vocabulary, self.slots = model, vocabulary, slots
        self.eos, self.unconditional = eos, unconditional
        self.positions = most_positions(model.config) or 2**31
        self.longest = self.positions if longest is None else min(longest, self.positions)
        if self.longest == 2**31:
            raise ValueError(f"{type(model).__name__} has no limit of positions: say how long requests are (longest)")
        self.chooser = Chooser(model, vocabulary, never)
        self.network = slots_for(model, 2 * slots, self.longest)
        self.waiting: deque[tuple[Writer, Request]] = deque()
        self.rows: dict[Writer, list[int]] = {}  # of the network: of an answer, and of its unconditional branch

    def submit(self, request: Request, **settings: Any) -> Writer:
        """Let a request wait for a slot; its `tokens` grow with the steps until it is `done`.

        Args:
            settings: Fields of `Sampling`.

        Raises:
            ValueError: If a setting is out of range, or request and answer may take more than `longest` tokens.
        """
        writer = Writer(self.vocabulary, request, Sampling(**settings), self.eos, self.positions)
        if (most := len(request.prompt) + len(writer.tokens) + writer.most_left) > self.longest:
            raise ValueError(
                f"prompt and answer may take {most} tokens, {self.longest} are the most: shorten the prompt, or ask "
                "for less (max_text_tokens, max_images)"
            )
        self.waiting.append((writer, request))
        return writer

    def cancel(self, writer: Writer) -> None:
        """End an answer as it stands; its slot is free after the next step."""
        writer.done = True

    @torch.inference_mode()
    def step(self) -> list[Writer]:
        """Let those that wait into free slots, and write a token of each answer that has one.

        Returns:
            The answers that had a slot, in the order in which they came. Those that are `done` have left.

        Raises:
            ValueError: If the model's logits are not finite.
        """
        self._join()
        writers = list(self.rows)
        if not writers:
            return []
        for writer, token in zip(
            writers, self.chooser.choose(self.hidden, writers, [*self.rows.values()]), strict=True
        ):
            if not writer.done:
                writer.write(token)
        for writer in writers:
            if writer.done:
                self._leave(writer)
        if self.rows:
            last = {row: writer.tokens[-1] for writer, rows in self.rows.items() for row in rows}
            self.hidden = self.network.step(torch.tensor([last[row] for row in range(len(last))]).to(self.model.device))
        return writers

    def _join(self) -> None:
        prompts: list[list[int]] = []
        new_tokens: list[int] = []
        taken = self._taken()
        while self.waiting and len(self.rows) < self.slots:
            writer, request = self.waiting.popleft()
            if writer.done:  # cancelled
                continue
            self.rows[writer] = []
            for prompt in [request.prompt, *([self.unconditional] if writer.guided else [])]:
                self.rows[writer].append(taken + len(prompts))
                prompts.append([*prompt, *writer.opening])
                new_tokens.append(writer.most_left)
        if prompts:
            joined = self.network.join(prompts, new_tokens)
            self.hidden = torch.cat([self.hidden, joined]) if taken else joined

    def _leave(self, writer: Writer) -> None:
        for row in sorted(self.rows[writer], reverse=True):
            self.network.leave(row)
            self.rows[writer].remove(row)
            last = self._taken()
            for rows in self.rows.values():
                rows[:] = [row if each == last else each for each in rows]
        del self.rows[writer]

    def _taken(self) -> int:
        return sum(map(len, self.rows.values()))
