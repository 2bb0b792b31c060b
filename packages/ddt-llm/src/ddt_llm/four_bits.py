"""Linear layers of a backbone in four bits (NF4 of QLoRA, arXiv:2305.14314), by bitsandbytes: extra `qlora`.

Frozen, they take an eighth of the memory of float32; adapters beside them, embedding and head learn in full precision.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bits = Literal[4, 32]


def in_four_bits() -> dict[str, Any]:
    """Return what `from_pretrained` of transformers takes, besides, to make all linear layers but the head so.

    Raises:
        ValueError: If bitsandbytes or accelerate is missing.
    """
    if missing := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]:
        raise ValueError(f"bits (4) needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def layers_in_four_bits(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and layers that are in four bits."""
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit" and not hasattr(layer, "base_layer"):  # which an adapter's has
            yield name, layer


def compute_plainly(model: "PreTrainedModel") -> None:
    """Let a model compute on the CPU as on any device: bitsandbytes would put its weights into another order there."""
    for _, layer in layers_in_four_bits(model):
        layer.support_avx512bf16_for_cpu = False


def leave_out_four_bits(module: nn.Module) -> None:
    """Let the state dict of a module have no weights of four bits: they are those of the backbone, and never learn."""

    def names(prefix: str = "") -> tuple[str, ...]:
        return tuple(f"{prefix}{name}.weight" for name, _ in layers_in_four_bits(module))

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        dropped = names(prefix)
        for key in [key for key in state if key.startswith(dropped)]:
            del state[key]

    def forgive(_: nn.Module, keys: Any) -> None:
        dropped = names()
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(dropped)]

    module.register_state_dict_post_hook(drop)
    module.register_load_state_dict_post_hook(forgive)
