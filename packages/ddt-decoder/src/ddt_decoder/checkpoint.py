# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/checkpoint.py
"""A published model on disk: `config.json` and `model.safetensors` in a folder, loaded strictly.

A folder may come from elsewhere. Nothing in it runs, and nothing is allocated before its sizes are known to be those of
its weights.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from .ranks import rank
from .shipped import shipped
from .weights_file import write_weights

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def save_folder(folder: str | Path, model: nn.Module, kind: str, config: dict[str, Any]) -> None:
    """Write `model.safetensors`, then `config.json`: a folder without a config is unfinished.

    Of a model that ranks share (FSDP2) all of them have to, and the first one writes.
    """
    if rank():
        write_weights(None, model.state_dict())
        return
    folder = Path(folder)
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    about = {"model": kind, **{name: value for name, value in config.items() if name.endswith("fingerprint")}}
    write_weights(partial / WEIGHTS, model.state_dict(), torch.float32, about)
    (partial / CONFIG).write_text(json.dumps({"format": FORMAT, "model": kind, **config}, indent=2))
    (folder / CONFIG).unlink(missing_ok=True)
    for name in (WEIGHTS, CONFIG):
        (partial / name).replace(folder / name)
    partial.rmdir()


def read_config(folder: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save_folder` was given as `config`.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If it is damaged, holds another model, or one of another format.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} in '{folder}': {path} is missing; by name there is: {', '.join(shipped())}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} in '{folder}' is damaged ({error}); save the model again") from error
    if not isinstance(config, dict) or config.pop("model", None) != kind or config.pop("format", None) != FORMAT:
        raise ValueError(f"'{folder}' does not hold a {kind} of format {FORMAT}; see its {CONFIG}")
    return config


def load_model(folder: str | Path, make: Callable[[], Model]) -> Model:
    """Make the model of a folder and fill it, strictly.

    Args:
        make: Called twice, first on the meta device, to compare names and sizes with those of the file.

    Raises:
        ValueError: If the file is damaged, or its names or shapes are not those of the model.
    """
    try:
        check_sizes(Path(folder) / WEIGHTS, make)
        model = make()
        model.load_state_dict(load_file(Path(folder) / WEIGHTS))
        return model
    except (RuntimeError, OSError, SafetensorError, SizeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the weights in '{folder}' are damaged or incomplete ({said}); save it again") from error


class SizeError(Exception):
    """A file does not hold the weights of a model."""


def check_sizes(file: Path, make: Callable[[], nn.Module], renamed: bool = False) -> None:
    """Compare the names and shapes in a safetensors file with those of a model, which is made on the meta device.

    Args:
        renamed: Whether the file may have other names; then the shapes of those that both have are compared.

    Raises:
        SizeError: If they differ.
        SafetensorError: If the file is damaged.
    """
    with safe_open(file, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in sorted(tensors.keys())}
    found = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, TypeError, ArithmeticError) as error:  # what torch raises of sizes beyond all numbers
        raise SizeError(f"{CONFIG} asks for a model that cannot be made") from error
    for name in sorted(found.keys() | wanted.keys()):
        shape, kind = found.get(name, (None, "F32"))
        if renamed and (shape is None or name not in wanted):
            continue
        if shape != wanted.get(name) or "F" not in kind:
            raise SizeError(f"{name} is {kind} {shape} in {file.name}, and {wanted.get(name)} in {CONFIG}")
