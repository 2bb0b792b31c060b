"""ddt pretrain: a causal language model with a visual vocabulary, on captions, ids and text."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.examples import Views, pretraining_example, split_lines, text_lines
from ddt_apps.train.language import fit_language_model, fitting_examples, longest_example
from ddt_apps.train.settings import Pretrain
from ddt_data import Mixture, open_shards
from ddt_llm import MultimodalLM, expand_vocabulary, load_backbone, tiny_llama, train_text_tokenizer
from ddt_tokenizer.codec import Codec

TEXTS = 10_000  # samples whose words train the BPE of backbone "tiny"


def build_model(config: Pretrain, dataset: Mixture, text: list[str], device: str = "cpu") -> MultimodalLM:
    """Build the untrained model: the backbone, expanded by the visual vocabulary of the id shards.

    Args:
        config: Of the run.
        dataset: The id shards.
        text: Lines of text.
        device: "meta" builds it without its weights.

    Raises:
        ValueError: If the backbone is no language model, or `codebook` is of another tokenizer.
    """
    identity = dataset.manifest.tokenizer
    if config.backbone == "tiny":
        texts = text + [words for i in range(min(len(dataset), TEXTS)) for words in _words(dataset[i])]
        text_tokenizer = train_text_tokenizer(texts, config.text_vocabulary)
        with torch.device(device):
            backbone = tiny_llama(config.llama, text_tokenizer, config.seed)
        spread = 1.0  # there is no text ability yet to be careful with
    else:
        (backbone, text_tokenizer), spread = load_backbone(config.backbone, device, config.bits), 0.5
    model, text_tokenizer = expand_vocabulary(
        backbone,
        text_tokenizer,
        codebook_size=identity["codebook_size"],
        num_tokens=identity["num_tokens"],
        visual_order=config.visual_order,
        codebook=_codebook(config.codebook, identity["fingerprint"]) if config.codebook and device != "meta" else None,
        spread=spread,
        multiple=config.multiple,
        seed=config.seed,
    )
    return MultimodalLM(model, text_tokenizer, "caption", identity["fingerprint"])


def _codebook(run: str, fingerprint: str) -> Tensor:
    codec = Codec.from_pretrained(run)
    if codec.fingerprint != fingerprint:
        raise ValueError(f"codebook '{run}' is of another tokenizer than the ids; name the run that wrote them")
    with torch.inference_mode():
        return codec.tokenizer.embed(torch.arange(codec.codebook_size))


def _words(sample: dict) -> list[str]:
    meta = sample.get("meta", {})
    words = [sample["text"]] if "text" in sample else []
    words += [meta["edit"]["instruction"]] if "edit" in meta else []
    return words + [f"{q['question']} {q['answer']}" for q in meta.get("questions", [])]


def train(config: Pretrain, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export the model to `model/` in the run folder, which is returned; see `carry_out`.

    Raises:
        FileNotFoundError: If the id shards are missing.
        ValueError: If they hold no ids or none that fit, the backbone cannot be trained so, the run is of another
            config, or a gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def begin(config: Pretrain, device: str = "cpu") -> tuple[MultimodalLM, Views]:
    """Build the model as it is before the first step, and what it learns.

    Args:
        device: "meta" builds it without its weights.

    Raises:
        FileNotFoundError: If the id shards are missing.
        ValueError: If they hold no ids or none that fit, or the backbone cannot be trained so.
    """
    dataset = open_shards(config.data)
    if dataset.manifest.tokenizer is None:
        raise ValueError(f"'{config.data}' holds pictures, not ids; make id shards from it with: ddt tokenize")
    text = text_lines(config.text)
    lm = build_model(config, dataset, text, device)
    if config.retention_limit is not None:
        text, _ = split_lines(text)
    make = partial(pretraining_example, tasks=config.tasks, text=text, longest=longest_example(lm, config))
    return lm, fitting_examples(lm, config, dataset, make)


def _work(run: Run) -> Exports:
    return fit_language_model(run, *begin(run.config, run.builds_on))
