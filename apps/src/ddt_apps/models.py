"""Trained runs from their folders: language models, codecs, and the two that belong together."""

import json
from pathlib import Path

import torch

from ddt_apps.run.devices import pick_device
from ddt_apps.run.yaml_file import read_yaml
from ddt_llm import MultimodalLM
from ddt_tokenizer.codec import Codec


def load_language_model(run: str | Path) -> MultimodalLM:
    """Load the exported model of a `ddt pretrain` or `ddt sft` run.

    Raises:
        FileNotFoundError: If the run is missing or unfinished.
    """
    folder = Path(run) / "model"
    if not (folder / "ddt.json").is_file():
        raise FileNotFoundError(f"no finished language model run in '{run}'; train one with: ddt pretrain, ddt sft")
    from transformers.utils import logging

    logging.disable_progress_bar()
    return MultimodalLM.from_pretrained(folder)


def load_renderer_run(run: str | Path, device: torch.device | str = "cpu") -> Codec:
    """Load the codec of a finished run: the tokenizer and decoder that its config names, with its renderer.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If they do not belong together, or the run is of no renderer.
    """
    config = Path(run) / "config.yaml"
    tokenizer = read_yaml(config).get("tokenizer")
    if not isinstance(tokenizer, str):
        raise ValueError(f"{config} is of no renderer run: it names no tokenizer")
    return Codec.from_pretrained(tokenizer, device, renderer=run)


def load_pair(run: Path, tokenizer: Path | None) -> tuple[MultimodalLM, Codec]:
    """Load a language model run and the codec whose ids it was trained on.

    Args:
        run: Folder of a `ddt pretrain` or `ddt sft` run.
        tokenizer: Folder of the tokenizer run; None looks for one of the right fingerprint beside the run.

    Raises:
        FileNotFoundError: If the run or a fitting tokenizer is missing.
    """
    lm = load_language_model(run)
    lm.model.to(pick_device())
    if tokenizer is not None:
        return lm, Codec.from_pretrained(tokenizer, pick_device())
    for config in sorted(Path(run).resolve().parent.glob("*/tokenizer/config.json")):
        if json.loads(config.read_text()).get("fingerprint") == lm.visual_fingerprint:
            return lm, Codec.from_pretrained(config.parent.parent, pick_device())
    raise FileNotFoundError(
        f"no tokenizer run of fingerprint {lm.visual_fingerprint} beside '{run}'; name its folder with --tokenizer"
    )


def need_instructions(lm: MultimodalLM, run: Path) -> None:
    """Refuse a model that was only pretrained.

    Raises:
        ValueError: If `lm` was not tuned on instructions.
    """
    if lm.template != "instruction":
        raise ValueError(f"the model in '{run}' was not tuned on instructions; use a run of: ddt sft")
