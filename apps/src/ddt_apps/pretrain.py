"""ddt pretrain: a causal language model with a visual vocabulary, on captions, ids and text."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ddt_apps.config import load_config
from ddt_apps.language import PretrainTasks, Views, pretraining_example, text_lines
from ddt_apps.runs import RUNS, Run
from ddt_data import Mixture, ShardDataset, open_shards
from ddt_data.datamodule import ShardStream
from ddt_llm import (
    MultimodalLM,
    OptimizerConfig,
    TinyLlamaConfig,
    collate,
    expand_vocabulary,
    tiny_llama,
    train_text_tokenizer,
)
from ddt_llm.training import LanguageModelTraining

TEXTS = 10_000  # samples whose words train the BPE of backbone "tiny"


@dataclass(frozen=True)
class Pretrain:
    """Settings of `ddt pretrain`."""

    data: str  # folder of id shards, or several with their shares: a:0.8,b:0.2
    name: str = "pretrain"  # of the run: runs/<name>
    backbone: str = "tiny"  # "tiny" trains `llama` from scratch; else a transformers folder or Hub id
    llama: TinyLlamaConfig = field(default_factory=TinyLlamaConfig)
    text_vocabulary: int = 768  # size of the BPE trained on the captions, for backbone "tiny"
    text: str = "prose"  # "prose" (embedded sentences), a folder of text shards, or "" for none
    visual_order: str = "coarse_to_fine"
    tasks: PretrainTasks = field(default_factory=PretrainTasks)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(steps=1000))
    batch_size: int = 64
    gradient_clip: float = 1.0  # largest gradient norm
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0


def build_model(config: Pretrain, dataset: ShardDataset | Mixture, text: list[str]) -> MultimodalLM:
    """Build the untrained model: the backbone, expanded by the visual vocabulary of the id shards."""
    identity = dataset.manifest.tokenizer
    sizes = {"codebook_size": identity["codebook_size"], "num_tokens": identity["num_tokens"]}
    if config.backbone == "tiny":
        texts = text + [words for i in range(min(len(dataset), TEXTS)) for words in _words(dataset[i])]
        text_tokenizer = train_text_tokenizer(texts, config.text_vocabulary)
        backbone = tiny_llama(config.llama, text_tokenizer, config.seed)
    else:
        backbone, text_tokenizer = config.backbone, None
    model, text_tokenizer = expand_vocabulary(
        backbone, text_tokenizer, **sizes, visual_order=config.visual_order, seed=config.seed
    )
    return MultimodalLM(model, text_tokenizer, "caption", identity["fingerprint"])


def _words(sample: dict) -> list[str]:
    meta = sample.get("meta", {})
    words = [sample["text"]] if "text" in sample else []
    words += [meta["edit"]["instruction"]] if "edit" in meta else []
    return words + [f"{q['question']} {q['answer']}" for q in meta.get("questions", [])]


def run_pretrain(config: str, overrides: list[str]) -> None:
    """Train from a configuration; see `train`."""
    train(load_config(Pretrain, config, overrides))


def train(config: Pretrain) -> Path:
    """Train, or continue, and export the model to `model/` in the run folder, which is returned.

    Raises:
        FileNotFoundError, ValueError: The id shards are missing or hold no ids; the run is of another config.
    """
    dataset = open_shards(config.data)
    if dataset.manifest.tokenizer is None:
        raise ValueError(f"'{config.data}' holds pictures, not ids; make id shards from it with: ddt tokenize")
    run = Run(RUNS / config.name, config)
    if run.finished:
        return run.folder
    text = text_lines(config.text)
    lm = build_model(config, dataset, text)
    examples = Views(dataset, pretraining_example(lm.sequences, config.tasks, text), config.seed)
    fit_language_model(run, lm, examples, "pretrain", config)
    return run.folder


def fit_language_model(run: Run, lm: MultimodalLM, examples: Views, stage: str, config) -> None:
    """Train `lm` on `examples` within `run` and export it to `model/`; shared by pretraining and tuning."""
    steps = config.optimizer.steps
    batches = partial(collate, pad_id=lm.sequences.pad)
    run.fit(
        LanguageModelTraining(lm.model, config.optimizer, config.seed),
        ShardStream(examples, batches, config.batch_size, steps, config.seed, config.workers, count_epochs=True),
        stage=stage,
        steps=steps,
        device=config.device,
        precision=config.precision,
        gradient_clip=config.gradient_clip,
    )
    lm.save_pretrained(run.folder / "model")
    run.finish()
