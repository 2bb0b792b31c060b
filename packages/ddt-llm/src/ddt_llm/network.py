"""A backbone read step by step: prompts of any lengths first, then token by token, with a cache where it has one.

Shape letters: R rows, T tokens of one call, S tokens seen so far, H heads, D width, E width of a head.
"""

import math
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddt_llm.head import head_logits
from ddt_llm.masks import Layout, attention_mask
from ddt_llm.opening import FOREIGN_ERRORS
from ddt_llm.positions import most_positions
from ddt_llm.self_test import agree, check_backbone, check_masks, trial, trial_tokens

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel


class Network(Protocol):
    """A backbone that has read prompts, rows of token ids, and reads at most `new_tokens` after them."""

    def __init__(self, model: "PreTrainedModel", rows: list[list[int]], new_tokens: int): ...

    def start(self) -> Tensor:
        """Read the prompts and return hidden states [R, D] at their last position."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        ...

    def look(self, kept: Tensor, looked: Tensor) -> Tensor:
        """Read tokens [R, A] and, in the same pass, look at N that see them and one another but are not kept.

        Returns:
            Hidden states [R, A + N, D].
        """
        ...


class CachedNetwork:
    """A backbone with a static key-value cache; prompts are padded on the left."""

    def __init__(self, model: "PreTrainedModel", rows: list[list[int]], new_tokens: int):
        length = max(map(len, rows))
        self.model = model
        # Any token is good as padding; a row of zeros, as id 0 often has, would hide that a model looks at it.
        self.input_ids = torch.tensor([row[:1] * (length - len(row)) + row for row in rows], device=model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        self.position = lengths[:, None]  # [R, 1], of the next token
        self.read = 0  # tokens in the cache
        self.padded = min(map(len, rows)) < length
        places = torch.arange(length + new_tokens, device=model.device)
        self.seen = places >= length - lengths[:, None]  # [R, length + new_tokens], False on the padding
        self.make_cache(len(rows), length + new_tokens)

    def start(self) -> Tensor:
        """Read the prompts and return hidden states [R, D] at their last position."""
        length = self.input_ids.shape[1]
        positions = (self.seen[:, :length].long().cumsum(1) - 1).clamp(min=0)
        return self._read(self.input_ids, positions)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        hidden = self._read(tokens[:, None], self.position)
        self.position = self.position + 1
        return hidden

    def look(self, kept: Tensor, looked: Tensor) -> Tensor:
        """Read tokens [R, A], look at [R, N] that see all: hidden states [R, A + N, D]."""
        tokens, count = torch.cat([kept, looked], dim=1), kept.shape[1]
        positions = self.position + torch.arange(tokens.shape[1], device=tokens.device)
        self.read += tokens.shape[1]
        visible = torch.ones(tokens.shape[1], self.read, dtype=torch.bool, device=tokens.device)
        visible[:count] = visible[:count].tril(self.read - tokens.shape[1])
        visible[:count, self.read - looked.shape[1] :] = False
        hidden = self.run_seeing(tokens, positions, visible & self.seen[:, None, : self.read])
        self.read -= looked.shape[1]
        self.position = self.position + count
        return hidden

    def run_seeing(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Compute hidden states of tokens [R, T] that see what is True in `visible` [R, T, S], as `look` does."""
        output = self.model.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=attention_mask(visible, self.model),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.read += tokens.shape[1]
        return self.run(tokens, positions)[:, -1]

    def make_cache(self, rows: int, length: int) -> None:
        """Reserve room for `length` tokens a row."""
        from transformers import StaticCache

        self.cache = StaticCache(config=self.model.config, max_cache_len=length)

    def run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Compute hidden states [R, T, D] of tokens [R, T] at positions [R, T]; `self.read` counts them already."""
        output = self.model.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self.seen[:, : self.read].long() if self.padded else None,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state


class GrowingNetwork(CachedNetwork):
    """The same with a cache that grows by each token, for backbones that cannot work on a static one."""

    def make_cache(self, rows: int, length: int) -> None:
        """Begin an empty cache."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)

    def look(self, kept: Tensor, looked: Tensor) -> Tensor:
        """Read tokens [R, A], look at [R, N] that see all: hidden states [R, A + N, D]."""
        hidden = super().look(kept, looked)
        self.cache.crop(-looked.shape[1])
        return hidden


class UncachedNetwork:
    """A backbone that reads everything again for each token: slow, and right for any causal model."""

    def __init__(self, model: "PreTrainedModel", rows: list[list[int]], new_tokens: int):
        self.model, self.rows = model, rows
        self.most = most_positions(model.config)

    def start(self) -> Tensor:
        """Read the prompts and return hidden states [R, D] at their last position."""
        rows = [torch.tensor(row[: self.most]) for row in self.rows]  # a row that has ended may be longer
        tokens = pad_sequence(rows, batch_first=True).to(self.model.device)
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden[range(len(rows)), [len(row) - 1 for row in rows]]

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token [R] a row and return its hidden states [R, D]."""
        self.rows = [[*row, token] for row, token in zip(self.rows, tokens.tolist(), strict=True)]
        return self.start()

    def look(self, kept: Tensor, looked: Tensor) -> Tensor:
        """Read tokens [R, A], look at [R, N] that see all: hidden states [R, A + N, D]."""
        self.rows = [[*row, *tokens] for row, tokens in zip(self.rows, kept.tolist(), strict=True)]
        size, hidden = looked.shape[1], []
        for row, tokens in zip(self.rows, looked, strict=True):
            clean = torch.tensor([row], device=tokens.device)
            layout = Layout.causal(torch.arange(len(row), device=tokens.device)[None])
            places = torch.arange(len(row), len(row) + size, device=tokens.device)[None]
            layout = layout.beside(places, torch.full_like(places, len(row)), torch.ones_like(places))
            output = self.model.base_model(
                input_ids=torch.cat([clean, tokens[None]], dim=1),
                position_ids=layout.place,
                attention_mask=attention_mask(layout.visible(), self.model),
                use_cache=False,
            )
            hidden.append(output.last_hidden_state[:, len(row) - kept.shape[1] :])
        return torch.cat(hidden)


class LlamaNetwork(CachedNetwork):
    """LLaMA written out for one token at a time; equal to transformers, without what that does for generality."""

    model: "LlamaForCausalLM"

    def make_cache(self, rows: int, length: int) -> None:
        """Reserve room for keys and values of all layers, and compute the rotations of all positions."""
        backbone, config = self.model.base_model, self.model.config
        example = backbone.embed_tokens.weight[:1]
        positions = torch.arange(length, device=example.device)[None]
        self.cos, self.sin = (table[0] for table in backbone.rotary_emb(example, positions))  # [length, E]
        self.sin[:, : self.sin.shape[-1] // 2].neg_()  # for `_rotate`
        shape = (2, rows, config.num_key_value_heads, length, self.cos.shape[-1])
        self.cache = [example.new_zeros(shape) for _ in backbone.layers]
        # RMSNorm of width D as x * gain / hypot(|x|, floor): half the time of `F.rms_norm` for one token on a CPU.
        norms = [module for module in backbone.modules() if type(module) is type(backbone.norm)]
        self.gains = {norm: norm.weight * math.sqrt(config.hidden_size) for norm in norms}
        self.floor = self.cos.new_tensor(math.sqrt(config.hidden_size * config.rms_norm_eps), dtype=torch.float32)

    def run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        # A token sees those before it that are no padding; one new token without padding sees all.
        mask, new = None, tokens.shape[1]
        if new > 1 or self.padded:
            causal = torch.ones(new, self.read, dtype=torch.bool, device=tokens.device).tril(self.read - new)
            mask = causal & self.seen[:, None, None, : self.read]
            # A row of padding would see nothing, and attention over nothing is NaN: it sees itself.
            mask |= torch.eye(new, self.read, dtype=torch.bool, device=tokens.device) if new == self.read else False
        return self.layers(tokens, positions, mask)

    def layers(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Compute hidden states [R, T, D]; `mask` is True where a token sees another one, None where it sees all."""
        backbone = self.model.base_model
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # [R, 1, T, E]
        x = backbone.embed_tokens(tokens)
        for layer, cache in zip(backbone.layers, self.cache, strict=True):
            x = x + self._attend(layer.self_attn, self._normalize(layer.input_layernorm, x), cache, cos, sin, mask)
            x = x + layer.mlp(self._normalize(layer.post_attention_layernorm, x))
        return self._normalize(backbone.norm, x)

    def _attend(self, attention, x: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)  # [R, H, T, E]
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys, values = self.remember(cache, _rotate(k, cos, sin), v)
        grouped = keys.shape[1] < q.shape[1]
        mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), keys, values, attn_mask=mask, enable_gqa=grouped)
        return attention.o_proj(mixed.transpose(1, 2).flatten(2))

    def run_seeing(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Compute hidden states of tokens [R, T] that see what is True in `visible` [R, T, S], as `look` does."""
        return self.layers(tokens, positions, visible[:, None])

    def remember(self, cache: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Put keys and values [R, H, T, E] of new tokens into a layer's cache; return all [2, R, H, S, E]."""
        before = self.read - k.shape[2]
        cache[0, :, :, before : self.read] = k
        cache[1, :, :, before : self.read] = v
        return cache[:, :, :, : self.read]

    def _normalize(self, norm: torch.nn.Module, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * self.gains[norm] / torch.hypot(length, self.floor)).to(x.dtype)


def network_for(model: "PreTrainedModel", rows: list[list[int]], new_tokens: int) -> Network:
    """Return the quickest network that reads prompts as the model itself does, and at most `new_tokens` after them.

    Raises:
        ValueError: If there is none, or the weights are not finite.
    """
    network, most = quickest_network(model), most_positions(model.config)
    # Padding takes room in a cache, and some models have no more of it than positions.
    if network is not LlamaNetwork and most is not None and max(map(len, rows)) + new_tokens > most:
        network = UncachedNetwork
    return network(model, rows, new_tokens)


def looking_network_for(model: "PreTrainedModel", rows: list[list[int]], new_tokens: int) -> Network:
    """Return the quickest network that looks, as `Network.look` says, as the model does without a cache.

    Raises:
        ValueError: If there is none: the backbone follows no mask of ours.
    """
    if model not in _quickest_looking:
        from transformers import LlamaForCausalLM

        check_masks(model)
        networks = [LlamaNetwork] if isinstance(model, LlamaForCausalLM) else []
        networks += [GrowingNetwork]
        right = (network for network in networks if _looks_right(network, model))
        _quickest_looking[model] = next(right, UncachedNetwork)
    return _quickest_looking[model](model, rows, new_tokens)


def _looks_right(network: type[Network], model: "PreTrainedModel") -> bool:
    """Compare two looks after prompts of different lengths, the second with what the first looked at kept."""
    with trial(model):
        tokens = trial_tokens(model)
        rows, none = [tokens[0, :5].tolist(), tokens[1, :3].tolist()], tokens[:, :0]
        looks = [(none, tokens[:, 5:8]), (tokens[:, 5:8], tokens[:, 8:10]), (tokens[:, 8:9], none)]
        found = []
        for each in (UncachedNetwork, network):
            try:
                reader = each(model, rows, new_tokens=8)
                reader.start()
                found.append(head_logits(model, torch.cat([reader.look(*look) for look in looks], dim=1)))
            except FOREIGN_ERRORS:
                return False
        return agree(model, found[1], found[0])


_quickest_looking: "WeakKeyDictionary[PreTrainedModel, type[Network]]" = WeakKeyDictionary()
_quickest: "WeakKeyDictionary[PreTrainedModel, type[Network]]" = WeakKeyDictionary()


def quickest_network(model: "PreTrainedModel") -> type[Network]:
    """Return the quickest network that reads as the model itself does. It is measured once.

    Raises:
        ValueError: If there is none, or the weights are not finite.
    """
    if model not in _quickest:
        from transformers import LlamaForCausalLM

        check_backbone(model)
        networks = [LlamaNetwork] if isinstance(model, LlamaForCausalLM) else []
        networks += [CachedNetwork, GrowingNetwork, UncachedNetwork]
        right = (network for network in networks if _reads_right(network, model))
        if (quickest := next(right, None)) is None:
            raise ValueError(f"{type(model).__name__} cannot write: read in steps, it gives other logits than at once")
        _quickest[model] = quickest
    return _quickest[model]


def _reads_right(network: type[Network], model: "PreTrainedModel") -> bool:
    """Compare two steps after prompts of the same and of different lengths with the model's own logits."""
    with trial(model):
        tokens = trial_tokens(model)
        own, length = model(input_ids=tokens, use_cache=False).logits.float(), tokens.shape[1]
        for ends in ([length - 2, length - 2], [length - 2, length // 2]):
            rows = [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]
            expected = torch.stack([row[end - 1 : end + 2] for row, end in zip(own, ends, strict=True)])
            try:
                reader = network(model, rows, new_tokens=3)
                steps = (reader.step(tokens[range(2), [end + step for end in ends]]) for step in range(2))
                hidden = torch.stack([reader.start(), *steps], dim=1)
                same = agree(model, head_logits(model, hidden), expected)
            except FOREIGN_ERRORS:
                same = False
            if not same:
                return False
    return True


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate x [R, H, T, E] by position (RoPE, arXiv:2104.09864), in the layout of halves that transformers uses."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
