"""Rows of a backbone that come and go: each has read as much as it has, and all read their next token together.

Shape letters: R rows, H heads, S tokens seen so far, D width, E width of a head.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ddt_llm.network import LlamaNetwork, Network, network_for, quickest_network

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel


class Slots(Protocol):
    """A backbone that reads rows of which some join and some leave between two steps."""

    def join(self, prompts: list[list[int]], new_tokens: list[int]) -> Tensor:
        """Read prompts as rows behind those that are there, each to be followed by at most so many new tokens.

        Returns:
            Hidden states [len(prompts), D] at their last position.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        ...

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        ...


class LlamaSlots(LlamaNetwork):
    """LLaMA over one cache, in which every row has a length of its own: what one row reads costs no other a pass.

    Args:
        rows, length: Most rows, and most tokens of a row.
    """

    def __init__(self, model: "LlamaForCausalLM", rows: int, length: int):
        self.model = model
        self.lengths: list[int] = []  # of the rows, in tokens
        self.make_cache(rows, length)

    def join(self, prompts: list[list[int]], new_tokens: list[int]) -> Tensor:
        """Read prompts; see `Slots.join`."""
        reader = LlamaNetwork(self.model, prompts, 0)
        hidden = reader.start()
        for i, prompt in enumerate(prompts):
            for cache, read in zip(self.cache, reader.cache, strict=True):
                cache[:, len(self.lengths), :, : len(prompt)] = read[:, i, :, reader.read - len(prompt) :]
            self.lengths.append(len(prompt))
        return hidden

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        self.read = max(self.lengths) + 1
        self.rows = torch.arange(len(self.lengths), device=tokens.device)
        self.ends = torch.tensor(self.lengths, device=tokens.device)
        seen = torch.arange(self.read, device=tokens.device) <= self.ends[:, None]
        mask = seen[:, None, None] if min(self.lengths) + 1 < self.read else None
        hidden = self.layers(tokens[:, None], self.ends[:, None], mask)
        self.lengths = [length + 1 for length in self.lengths]
        return hidden[:, -1]

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last, length = len(self.lengths) - 1, self.lengths.pop()
        if row < last:
            self.lengths[row] = length
            for cache in self.cache:
                cache[:, row, :, :length] = cache[:, last, :, :length]

    def remember(self, cache: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Put keys and values [R, H, 1, E] at the end of each row; return those of all rows [2, R, H, S, E]."""
        cache[0, self.rows, :, self.ends] = k[:, :, 0]
        cache[1, self.rows, :, self.ends] = v[:, :, 0]
        return cache[:, : len(self.rows), :, : self.read]


class SeparateSlots:
    """The same for any backbone: each row has a network of its own, and they take turns."""

    def __init__(self, model: "PreTrainedModel"):
        self.model = model
        self.networks: list[Network] = []

    def join(self, prompts: list[list[int]], new_tokens: list[int]) -> Tensor:
        """Read prompts; see `Slots.join`."""
        joining = [network_for(self.model, [prompt], new) for prompt, new in zip(prompts, new_tokens, strict=True)]
        self.networks += joining
        return torch.cat([network.start() for network in joining])

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        return torch.cat([network.step(each) for network, each in zip(self.networks, tokens.split(1), strict=True)])

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self.networks.pop()
        if row < len(self.networks):
            self.networks[row] = last


def slots_for(model: "PreTrainedModel", rows: int, length: int) -> Slots:
    """Return the quickest slots that read as the model itself does.

    Raises:
        ValueError: If there are none, or the weights are not finite.
    """
    return LlamaSlots(model, rows, length) if quickest_network(model) is LlamaNetwork else SeparateSlots(model)
