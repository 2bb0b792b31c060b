"""Low-rank adapters on every linear layer (LoRA, arXiv:2106.09685) through peft: extra `lora`."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from ddt_llm.four_bits import Bits, layers_in_four_bits
from ddt_llm.head import vocabulary_weights
from ddt_llm.limits import PositiveInt, check_settings
from ddt_llm.opening import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Size of the adapters.

    Raises:
        ValueError: If a value is outside its range.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32  # adapters are scaled by alpha / rank
    # In which a pretrained backbone is kept beside them; 4 (QLoRA, arXiv:2305.14314) takes bitsandbytes.
    bits: Bits = 32

    def __post_init__(self):
        check_settings(self)


def add_lora(model: "PreTrainedModel", config: LoRAConfig, seed: int = 0) -> "PeftModel":
    """Put adapters into a causal LM (in place): they, the embedding and the head are trained, nothing else.

    Train it with `LanguageModelTraining(..., keep_text=True)`, which leaves rows of text tokens as they are, and call
    `merge_lora` before saving.

    Returns:
        What `merge_lora` takes; `model` itself is used as before.

    Raises:
        ValueError: If peft is missing.
    """
    if find_spec("peft") is None:
        raise ValueError("lora needs the package peft: pip install peft")
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear"))
    for weight in vocabulary_weights(model):
        weight.requires_grad_(True)
    return adapted


def merge_lora(adapted: "PeftModel") -> "PreTrainedModel":
    """Add the adapters to the weights of the model and take them out: it is a plain transformers model again.

    Weights of four bits become those of float32 that they stand for.
    """
    model = adapted.get_base_model()
    if not any(layers_in_four_bits(model)):
        return adapted.merge_and_unload().requires_grad_(True)
    from peft.tuners.lora import LoraLayer

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    added = {
        name: (layer.lora_B["default"].weight, layer.lora_A["default"].weight, layer.scaling["default"])
        for name, layer in layers.items()
    }
    adapted.unload()
    with quiet_transformers():
        model.dequantize()
    for name, (up, down, scale) in added.items():
        model.get_submodule(name).weight.data.addmm_(up.data, down.data, alpha=scale)
    return model.requires_grad_(True)
