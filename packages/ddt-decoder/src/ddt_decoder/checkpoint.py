# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/checkpoint.py
"""A published model on disk: `config.json` and `model.safetensors` in a folder, loaded strictly."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = 1


def save_folder(folder: str | Path, model: nn.Module, kind: str, config: dict[str, Any]) -> None:
    """Write `model.safetensors`, then `config.json`: a folder without a config is unfinished."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.partial")
    (folder / "config.json.partial").write_text(json.dumps({"format": FORMAT, "model": kind, **config}, indent=2))
    shutil.copymode(
        folder / "config.json.partial", folder / "model.safetensors.partial"
    )  # safetensors lets nobody read
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "model.safetensors.partial").rename(folder / "model.safetensors")
    (folder / "config.json.partial").rename(folder / "config.json")


def read_config(folder: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save_folder` was given as `config`.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If it holds another model, or one of another format.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} in '{folder}': {path} is missing")
    config = json.loads(path.read_text())
    if config.pop("model", None) != kind or config.pop("format", None) != FORMAT:
        raise ValueError(f"'{folder}' does not hold a {kind} of format {FORMAT}; see its config.json")
    return config


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Fill the model, strictly.

    Raises:
        ValueError: If the file is damaged, or its names or shapes are not those of the model.
    """
    try:
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"the weights in '{folder}' are damaged or incomplete ({error}); save it again") from error
