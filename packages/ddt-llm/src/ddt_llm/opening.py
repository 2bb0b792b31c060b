"""Opening language models that may come from anywhere: nothing foreign runs, nothing is asked, nothing is made up."""

import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ddt_llm.four_bits import Bits, compute_plainly, in_four_bits
from ddt_llm.limits import check_setting

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]  # no code, no pickles
LARGEST_TABLES = 2**30  # numbers that a model computes for itself, such as masks and angles of positions
# What files and models of others raise, whatever is wrong with them.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
    struct.error,
)


def open_folder(
    folder: str | Path, *, empty: bool = False, bits: Bits = 32
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Load a causal LM in float32 and its tokenizer from a transformers folder.

    Code in the folder is never run and pickles are never read. Every weight must be in the files, with the shape that
    `config.json` gives it; this is compared before there is memory for any of them.

    Args:
        folder: Of the model.
        empty: Leave the weights in the files; those of the model are on the meta device.
        bits: In which linear layers other than the head are kept; see `ddt_llm.four_bits`.

    Raises:
        ValueError: If the folder is no such model, or is damaged; names it and what is wrong.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    check_setting("bits", Bits, bits)
    in_bits = in_four_bits() if bits == 4 else {}
    with named_errors(folder), quiet_transformers():
        config = _read_config(Path(folder))
        model = _without_weights(config, _weight_shapes(Path(folder)))
        if not empty:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                **in_bits,
            )
            refuse_made_up(found)
            compute_plainly(model)
        elif (Path(folder) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def fetch_folder(name: str) -> Path:
    """Fetch what `open_folder` needs of a model on the Hub into the cache, and return its folder.

    Raises:
        FileNotFoundError: If the Hub has no such model, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"'{name}' is neither a folder nor a model that the Hub has for you") from error


def refuse_made_up(found: dict[str, Any]) -> None:
    """Refuse a model some of whose weights transformers drew at random, or left out.

    Args:
        found: Its loading info.

    Raises:
        ValueError: If it did; names the weights.
    """
    wrong = {
        "are missing": sorted(found["missing_keys"]),
        "have other shapes than in config.json": sorted(name for name, *_ in found["mismatched_keys"]),
        "have no place in the model": sorted(found["unexpected_keys"]),
        "cannot be read": sorted(map(str, found["error_msgs"])),
    }
    for what, names in wrong.items():
        if names:
            raise ValueError(f"{len(names)} of its weights {what}, such as {names[0]}; copy or save it again")


@contextmanager
def named_errors(source: str | Path) -> Iterator[None]:
    """Turn whatever a foreign model raises within the block into one line that names it."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        said = " ".join(str(error).split("\n\n")[0].split())[:300]
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"'{source}' is no language model that can be used: {kind}{said}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence warnings and progress bars of transformers within the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_object(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is damaged ({type(error).__name__}); copy it again") from error
    if not isinstance(read, dict):
        raise ValueError(f"{file.name} must hold settings by their names; copy it again")
    return read


def _read_config(folder: Path) -> "PretrainedConfig":
    from transformers import CONFIG_MAPPING, AutoConfig

    config = _read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        code = " and brings code of its own, which is never run" if "auto_map" in config else ""
        raise ValueError(f"config.json has model_type {kind!r}, which transformers does not know{code}")
    if config.get("quantization_config"):
        raise ValueError("its weights are quantized; save it in plain floats, or use a .gguf file")
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapter_config.json makes it an adapter of another model; merge the two and save that")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config._attn_implementation = None  # it may name a kernel of the Hub, which is code
    return config


def _weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Read the shapes of all weights from the headers of their files."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            raise ValueError(f"it has no {WEIGHTS}; pickles are not read, save it again with save_pretrained")
        names = sorted(set(_read_object(folder / INDEX)["weight_map"].values()))
    shapes = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{INDEX} names {name}, which is not in the folder; copy it again")
        try:
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name} is cut or damaged ({error}); copy it again") from error
    return shapes


def _without_weights(config: "PretrainedConfig", shapes: dict[str, list[int]]) -> "PreTrainedModel":
    """Make a model on the meta device; refuse a config that asks for more than the files hold."""
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(shapes):
        raise ValueError(f"config.json has {layers} layers, its files hold {len(shapes)} weights; copy it again")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    needed = sum(weight.numel() for weight in model.parameters())
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    if needed > held:
        raise ValueError(f"config.json describes {needed:,} weights, its files hold {held:,}; copy it again")
    if (tables := sum(buffer.numel() for buffer in model.buffers())) > LARGEST_TABLES:
        raise ValueError(f"config.json asks for tables of {tables:,} numbers, more than {LARGEST_TABLES:,}")
    return model
