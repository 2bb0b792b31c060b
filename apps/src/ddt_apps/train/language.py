"""A training run of a language model: what pretraining and instruction tuning share."""

from functools import partial
from pathlib import Path

import lightning

from ddt_apps.run.folder import Run
from ddt_apps.train.examples import Views, split_lines, text_lines
from ddt_apps.train.settings import LanguageRun
from ddt_data.shards.datamodule import ShardStream
from ddt_llm import MultimodalLM, collate, collate_packed
from ddt_llm.lora import add_lora, merge_lora
from ddt_llm.retention import RetentionGuard
from ddt_llm.throughput import Throughput
from ddt_llm.training import LanguageModelTraining


def fit_language_model(run: Run, lm: MultimodalLM, examples: Views) -> None:
    """Train `lm` on `examples` within `run` and export it to `model/`; `throughput.csv` and `retention.json` beside it.

    Args:
        run: Of a `LanguageRun`.
        lm: Trained in place.
        examples: What it learns.

    Raises:
        ValueError: If a gradient is not finite, or too much text is lost.
    """
    config: LanguageRun = run.config
    collate_rows = partial(collate_packed, row_length=config.row_length) if config.row_length else collate
    join = partial(collate_rows, pad_id=lm.sequences.pad)
    adapted = add_lora(lm.model, config.lora, config.seed) if config.lora else None
    if config.activation_checkpointing:
        lm.model.gradient_checkpointing_enable()
    module = LanguageModelTraining(lm.model.train(), config.optimizer, config.seed, keep_text=adapted is not None)
    stream = ShardStream(examples, join, config.batch_size, config.batches, config.seed, config.workers, True)
    run.fit(module, stream, _watchers(config, run.folder, lm))
    if adapted is not None:
        merge_lora(adapted)
    lm.save_pretrained(run.folder / "model")
    run.finish()


def longest_text(lm: MultimodalLM, config: LanguageRun) -> int:
    """Return after how many tokens plain text is cut."""
    return config.row_length or lm.model.config.max_position_embeddings


def _watchers(config: LanguageRun, folder: Path, lm: MultimodalLM) -> list[lightning.Callback]:
    watchers: list[lightning.Callback] = [Throughput(folder / "throughput.csv", config.watch_every)]
    if config.retention_limit is not None:
        _, held_out = split_lines(text_lines(config.text))
        if not held_out:
            raise ValueError("retention_limit needs text to hold out; set text=prose or a folder of text shards")
        texts = [lm.sequences.text_only(line, longest_text(lm, config)) for line in held_out]
        file = folder / "retention.json"
        watchers.append(RetentionGuard(lm, texts, config.retention_limit, config.watch_every, file))
    return watchers
