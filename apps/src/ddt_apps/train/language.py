"""A training run of a language model: what pretraining and instruction tuning share."""

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from ddt_apps.run.carrying_out import Exports
from ddt_apps.run.folder import Run, Savable
from ddt_apps.train.examples import Views, split_lines, text_lines
from ddt_apps.train.settings import LanguageRun
from ddt_data import Mixture
from ddt_data.shards.datamodule import ShardStream
from ddt_llm import Example, MultimodalLM, Sequences, collate, collate_packed
from ddt_llm.lora import add_lora, merge_lora
from ddt_llm.retention import RetentionGuard
from ddt_llm.self_test import check_packing
from ddt_llm.throughput import Throughput
from ddt_llm.training import LanguageModelTraining

LEAST_DRAWN, MOST_DRAWN = 200, 10_000  # examples that are tried for their length before the first step
NAMED = 5  # samples whose texts are cut


def fit_language_model(
    run: Run, lm: MultimodalLM, examples: Views, training: Callable[..., LanguageModelTraining] = LanguageModelTraining
) -> Exports:
    """Train `lm` on `examples` within `run`; `throughput.csv` and `retention.json` lie in its folder.

    Args:
        run: Of a `LanguageRun`.
        lm: Trained in place.
        examples: What it learns.
        training: Makes the module of model, optimizer, seed and `keep_text`.

    Returns:
        What makes the model to export, as `model`.

    Raises:
        ValueError: If a gradient is not finite, or too much text is lost.
    """
    config: LanguageRun = run.config
    join = joining(lm, config)
    adapted = add_lora(lm.model, config.lora, config.seed) if config.lora else None
    if config.activation_checkpointing:
        lm.model.gradient_checkpointing_enable()
    module = training(lm.model.train(), config.optimizer, config.seed, keep_text=adapted is not None)
    stream = ShardStream(examples, join, config.batch_size, config.batches, config.seed, config.workers, True)
    run.fit(module, stream, _watchers(config, run.folder, lm))

    def exports() -> dict[str, Savable]:
        if adapted is not None:
            merge_lora(adapted)
        return {"model": lm}

    return exports


def joining(lm: MultimodalLM, config: LanguageRun) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Return what makes a batch of examples: rows of their own, or packed ones."""
    collate_rows = partial(collate_packed, row_length=config.row_length) if config.row_length else collate
    return partial(collate_rows, pad_id=lm.sequences.pad)


def longest_example(lm: MultimodalLM, config: LanguageRun) -> int | None:
    """Return the most tokens of an example, None if neither the model nor its rows have a limit."""
    return min(filter(None, (lm.sequences.longest, config.row_length)), default=None)


def fitting_examples(
    lm: MultimodalLM,
    config: LanguageRun,
    dataset: Mixture,
    make: Callable[[Sequences], Callable[[dict[str, Any], random.Random], Example]],
) -> Views:
    """Return what a run learns, texts cut where they are too long, and name on stderr the samples that lose words.

    Args:
        lm: Whose positions limit an example, as the rows of `config` do.
        config: Of the run.
        dataset: Id shards.
        make: Turns a layout into what makes examples.

    Raises:
        ValueError: If an example does not fit even with a word of its text.
    """
    if config.row_length:
        check_packing(lm.model)
    longest = longest_example(lm, config)
    fitting = Views(dataset, make(Sequences(lm.vocabulary, lm.text_tokenizer, longest)), config.seed)
    if longest is None:
        return fitting
    whole = Views(dataset, make(Sequences(lm.vocabulary, lm.text_tokenizer)), config.seed)
    drawn = range(min(max(len(dataset), LEAST_DRAWN), MOST_DRAWN))
    cut = {}
    for index in drawn:
        if len(whole[index].input_ids) > longest:
            cut[dataset[index % len(dataset)]["key"]] = fitting[index]  # made here to refuse what cannot be cut to fit
    if cut:
        names = ", ".join(sorted(cut)[:NAMED]) + (f" and {len(cut) - NAMED} more" if len(cut) > NAMED else "")
        seen = min(len(dataset), len(drawn))
        print(
            f"cut: {len(cut)} of {seen} samples have texts longer than {longest} tokens allow: "
            f"{names}; shorten them, raise row_length or take a model of more positions",
            file=sys.stderr,
        )
    return fitting


def _watchers(config: LanguageRun, folder: Path, lm: MultimodalLM) -> list[lightning.Callback]:
    watchers: list[lightning.Callback] = [Throughput(folder / "throughput.csv", config.watch_every)]
    if config.retention_limit is not None:
        _, held_out = split_lines(text_lines(config.text))
        if not held_out:
            raise ValueError("retention_limit needs text to hold out; set text=prose or a folder of text shards")
        texts = [lm.sequences.text_only(line, longest_example(lm, config)) for line in held_out]
        file = folder / "retention.json"
        watchers.append(RetentionGuard(lm, texts, config.retention_limit, config.watch_every, file))
    return watchers
