"""Trained runs from their folders: language models, codecs, and the two that belong together.

Where a run is named, the folder of its exported model does as well, and so does the name of a model that comes with
the packages.
"""

import json
from pathlib import Path

import torch

from ddt_apps.run.devices import pick_device_for
from ddt_apps.run.yaml_file import read_yaml
from ddt_llm import MultimodalLM
from ddt_llm.four_bits import Bits
from ddt_tokenizer.codec import Codec, run_of
from ddt_tokenizer.precision import Precision
from ddt_tokenizer.shipped import folder_of, is_shipped, shipped


def load_language_model(
    run: str | Path, precision: Precision = "32", device: str = "cpu", bits: Bits = 32
) -> MultimodalLM:
    """Load the exported model of a `ddt pretrain` or `ddt sft` run; see `MultimodalLM.from_pretrained`.

    Raises:
        FileNotFoundError: If the run is missing or unfinished.
    """
    folder = folder_of(run, "model") if is_shipped(run) else run_of(run) / "model"
    if not (folder / "ddt.json").is_file():
        raise FileNotFoundError(f"no finished language model run in '{run}'; train one with: ddt pretrain, ddt sft")
    from transformers.utils import logging

    logging.disable_progress_bar()
    return MultimodalLM.from_pretrained(folder, device, precision, bits=bits)


def load_renderer_run(
    run: str | Path, device: torch.device | str = "cpu", precision: Precision = "32", vae: str | None = None
) -> Codec:
    """Load the codec of a finished run: its tokenizer and decoder, with its renderer.

    The tokenizer run is the one that its config names, or one beside it, whichever has the fingerprint of the renderer.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If they do not belong together, or the run is of no renderer.
    """
    run = run_of(run)
    if not (run / "renderer" / "config.json").is_file():
        raise FileNotFoundError(f"no finished renderer run in '{run}'; train one with: ddt train-renderer")
    try:
        named = Path(read_yaml(run / "config.yaml")["tokenizer"])
    except (OSError, ValueError, TypeError, KeyError):
        named = None  # the fingerprint says which it is
    wanted = _read(run / "renderer" / "config.json").get("tokenizer_fingerprint")
    for folder in [*([named] if named else []), *_beside(run)]:
        if _fingerprint(folder) == wanted:
            return Codec.from_pretrained(folder, device, renderer=run, vae=vae, precision=precision)
    raise FileNotFoundError(f"no tokenizer run of fingerprint {wanted} in '{named}' or beside '{run}'; put it there")


def load_pair(
    run: Path, tokenizer: Path | None, precision: Precision = "32", renderer: Path | None = None
) -> tuple[MultimodalLM, Codec]:
    """Load a language model run and the codec whose ids it was trained on.

    Args:
        run: Folder of a `ddt pretrain` or `ddt sft` run.
        tokenizer: Folder of the tokenizer run; None looks for one of the right fingerprint beside the run.
        precision: In which both compute.
        renderer: Folder of a `ddt train-renderer` run of that tokenizer, to draw in the decoder's place.

    Raises:
        FileNotFoundError: If a run or a fitting tokenizer is missing.
        ValueError: If they do not belong together.
    """
    lm, device = load_language_model(run, precision), pick_device_for(precision)
    lm.model.to(device)
    if tokenizer is not None:
        return lm, Codec.from_pretrained(tokenizer, device, renderer=renderer, precision=precision)
    for folder in [*_beside(run), *shipped()]:
        if _fingerprint(folder) == lm.visual_fingerprint:
            return lm, Codec.from_pretrained(folder, device, renderer=renderer, precision=precision)
    raise FileNotFoundError(
        f"no tokenizer run of fingerprint {lm.visual_fingerprint} beside '{run}'; name its folder with --tokenizer"
    )


def _beside(run: Path) -> list[Path]:
    return sorted(config.parents[1] for config in run_of(run).resolve().parent.glob("*/tokenizer/config.json"))


def _fingerprint(run: str | Path) -> str | None:
    """Return the fingerprint of a finished tokenizer run, or shipped model; None for what is unfinished or none."""
    if is_shipped(run):
        return _read(folder_of(run, "tokenizer") / "config.json").get("fingerprint")
    if not (Path(run) / "decoder" / "config.json").is_file():
        return None
    return _read(Path(run) / "tokenizer" / "config.json").get("fingerprint")


def _read(config: Path) -> dict:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def need_instructions(lm: MultimodalLM, run: Path) -> None:
    """Refuse a model that was only pretrained.

    Raises:
        ValueError: If `lm` was not tuned on instructions.
    """
    if lm.template != "instruction":
        raise ValueError(f"the model in '{run}' was not tuned on instructions; use a run of: ddt sft")
