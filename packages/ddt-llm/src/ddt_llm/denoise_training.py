"""Lightning module that adapts a model to denoise, beside what it can already (extra `train`).

A row holds its tokens, causal as ever, and behind them noised copies of spans, which see what came before their block
and one another (Emu3.5's discrete diffusion adaptation, arXiv:2510.26583, as this project reads it).

Shape letters: B rows, L tokens of a row, N noised positions of a row, D width.
"""

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddt_llm.corruption import known_at, shifted
from ddt_llm.denoise_config import AdaptConfig, DenoiseConfig
from ddt_llm.head import head_nats
from ddt_llm.loss import TokenLoss
from ddt_llm.masks import Layout, attention_mask
from ddt_llm.optimizer import OptimizerConfig
from ddt_llm.positions import most_positions
from ddt_llm.ranks import num_ranks, summed
from ddt_llm.self_test import check_masks
from ddt_llm.sequences import IGNORED
from ddt_llm.training import LanguageModelTraining
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PADDING = (0, IGNORED, 0.0, 0, 1, 2**62, 0)  # of copies: a group of no document, which nothing else sees


class Block(NamedTuple):
    """Tokens of a row that are denoised together."""

    document: int  # of the row, from 1
    start: int  # place of its first token
    targets: Tensor  # int64 [N]


def blocks_of(
    tokens: Tensor,
    labels: Tensor,
    places: Tensor,
    vocabulary: VisualVocabulary,
    config: DenoiseConfig,
    eos: int,
    whole: Callable[[], bool] = lambda: False,
) -> Iterator[Block]:
    """Find what is denoised in a row [L]: trained images and, with `text_block`, trained texts that follow something.

    A text with what ends it, `eos` or `<boi>`, is cut into blocks of `text_block`, the last filled up with `eos`.

    Args:
        whole: Asked for each image, whether it is one block.

    Example:
        >>> vocabulary = VisualVocabulary(text_size=10, codebook_size=4, num_tokens=3, masked=True)
        >>> row = torch.tensor([1, 5, 14, 10, 12, 13, 15, 2])  # <bos> a word <boi> three ids <eoi> <eos>
        >>> config = DenoiseConfig(blocks=(1, 2))
        >>> found = blocks_of(row, row, torch.arange(8), vocabulary, config, eos=2)
        >>> [(block.start, block.targets.tolist()) for block in found]
        [(3, [10]), (4, [12, 13])]
    """
    documents, trained = (places == 0).cumsum(0), labels != IGNORED
    for opening in (tokens[:-1] == vocabulary.boi).nonzero()[:, 0].tolist():
        if trained[first := opening + 1]:
            sizes = (vocabulary.num_tokens,) if whole() else config.of_image(vocabulary.num_tokens)
            for end, size in zip(accumulate(sizes), sizes, strict=True):
                begin = first + end - size
                yield Block(int(documents[begin]), int(places[begin]), tokens[begin : begin + size])
    if config.text_block:
        text = trained & (tokens < vocabulary.text_size) & (places > 1)
        runs = documents.where(text, 0)  # equal numbers in a row are a run
        stops = [*((runs[1:] != runs[:-1]).nonzero()[:, 0] + 1).tolist(), len(runs)]
        for begin, stop in zip([0, *stops], stops, strict=False):
            if runs[begin]:
                run = tokens[begin : stop + (stop < len(tokens) and int(tokens[stop]) == vocabulary.boi)]
                run = torch.cat([run, run.new_full((-len(run) % config.text_block,), eos)])
                for offset, block in zip(
                    range(0, len(run), config.text_block), run.split(config.text_block), strict=True
                ):
                    yield Block(int(documents[begin]), int(places[begin]) + offset, block)


class DenoiseTraining(LanguageModelTraining):
    """Trains writing in order and denoising together, on batches of `collate` or `collate_packed`.

    Logs `loss` (nats a token, of both), `bits_per_text_token` and `bits_per_visual_token` as in training in order,
    `bits_per_denoised_token`, and `lr`. The rest is as in `LanguageModelTraining`.

    Args:
        model: With a `<v_mask>` (`ddt_llm.expansion.add_mask`).
        eos: Fills blocks of text.

    Raises:
        ValueError: If the model has no visual vocabulary or `<v_mask>`, or does not see by masks.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        config: OptimizerConfig,
        seed: int = 0,
        *,
        denoise: DenoiseConfig,
        adapt: AdaptConfig,
        eos: int,
        keep_text: bool = False,
    ):
        super().__init__(model, config, seed, keep_text=keep_text)
        check_masks(model)
        assert self.vocabulary.mask  # refuses what it refuses
        denoise.of_image(self.vocabulary.num_tokens)
        self.denoise, self.adapt, self.eos = denoise, adapt, eos
        self.positions = most_positions(model.config) or 2**31

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross-entropy in nats of what is written in order and of what is denoised."""
        if self.global_step < self.adapt.in_order_steps:
            return super().training_step(batch, batch_idx)
        in_order, denoised, weights = self.losses(**batch)
        in_order, share = in_order.of_all_ranks(), self.adapt.in_order
        total = summed(weights.sum()) / num_ranks()
        nats = share * (in_order.text_nats + in_order.visual_nats) + (denoised * weights).sum()
        loss = nats / (share * (in_order.text_count + in_order.visual_count) + total).clamp(min=1)
        bits = {
            "bits_per_text_token": in_order.bits_per_text_token,
            "bits_per_visual_token": in_order.bits_per_visual_token,
        }
        bits["bits_per_denoised_token"] = (denoised * weights).sum() / total.clamp(min=1) / math.log(2)
        self.log_dict({"loss": loss, **bits, "lr": self.lr_schedulers().get_last_lr()[0]})
        return loss

    def losses(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None
    ) -> tuple[TokenLoss, Tensor, Tensor]:
        """Compute cross-entropy of a batch in one pass of the network.

        Returns:
            Of what is written in order; and of what is denoised, nats and weights of each token, both [M].
        """
        clean, device = input_ids.shape[1], input_ids.device
        places = torch.arange(clean).expand(len(input_ids), -1) if position_ids is None else position_ids
        rows = [self.copies(*(part.cpu() for part in row)) for row in zip(input_ids, labels, places, strict=True)]
        columns = zip(zip(*rows, strict=True), PADDING, strict=True)
        columns = [pad_sequence(parts, batch_first=True, padding_value=fill).to(device) for parts, fill in columns]
        tokens, targets, weights, of_place, start, group, document = columns
        layout = Layout.causal(places.to(device)).beside(of_place, start, group, document)
        output = self.model.base_model(
            input_ids=torch.cat([input_ids, tokens], dim=1),
            position_ids=layout.place,
            attention_mask=attention_mask(layout.visible(), self.model),
            use_cache=False,
        )

        # In order, the next token; denoised, the own one.
        hidden, copied = output.last_hidden_state.split([clean, tokens.shape[1]], dim=1)
        trained, unknown = labels[:, 1:] != IGNORED, targets != IGNORED
        follows, own = labels[:, 1:][trained], targets[unknown]
        in_order = head_nats(self.model, hidden[:, :-1][trained], follows)
        denoised = head_nats(self.model, copied[unknown], own)
        return TokenLoss.of(in_order, follows, self.vocabulary), denoised, weights[unknown]

    def copies(self, tokens: Tensor, labels: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Draw noised copies of a row [L]: tokens, targets, weights, places, starts, groups, documents, [N] each."""

        def whole() -> bool:
            return bool(torch.rand(()) < self.adapt.whole_share)

        parts: list[list[Tensor]] = []
        for block in blocks_of(tokens, labels, places, self.vocabulary, self.denoise, self.eos, whole):
            inside = block.targets[: self.positions - block.start]  # what fills a text may lie beyond the last position
            drawn = list(self.noised(inside))
            for noised, unknown in drawn:
                targets = inside.where(unknown, IGNORED)
                weight = len(targets) / (len(drawn) * int(unknown.sum())) if self.adapt.likelihood else 1.0
                about = weight, block.start, block.start, len(parts) + 1, block.document
                weights, of_place, start, group, document = (torch.full_like(targets, 1) * each for each in about)
                parts.append([noised, targets, weights, of_place + torch.arange(len(targets)), start, group, document])
        parts = parts or [[torch.tensor([fill]) for fill in PADDING]]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def noised(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield noised tokens [N] and which of them are to be foretold, bool [N]: once or, complementary, twice."""
        time = shifted(torch.rand(1), self.adapt.shift)
        if self.denoise.path == "metric":
            first = self.vocabulary.visual.start
            vectors = self.model.get_input_embeddings().weight[self.vocabulary.visual].detach().float().cpu()
            chances = self.denoise.metric.probabilities(time.expand(len(targets)), targets - first, vectors)
            yield first + chances.multinomial(1)[:, 0], torch.ones_like(targets, dtype=torch.bool)
            return
        known = known_at(time[None], torch.rand(1, len(targets)))[0]
        yield targets.where(known, self.vocabulary.mask), ~known
        if self.adapt.complementary and known.any():
            yield targets.where(~known, self.vocabulary.mask), known
