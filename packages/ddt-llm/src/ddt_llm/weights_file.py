# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/weights_file.py
"""A safetensors file, written tensor by tensor: of a model that processes share no more is ever gathered."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
NAMES |= {torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def is_shared(model: nn.Module) -> bool:
    """Return whether each rank has a share of the model only (FSDP2)."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of which each rank has a share (FSDP2); all of them have to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def write_weights(
    file: Path | None, state: Mapping[str, Tensor], dtype: torch.dtype | None = None, about: Mapping[str, str] = {}
) -> None:
    """Write tensors by name, in order; where some are shared all ranks have to, and one of them has a file.

    Args:
        file: None only takes part in gathering.
        dtype: In which all are written; None leaves each as it is.
        about: What the file says of itself, to those who open no `config.json`.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_weights(Path(folder) / "model.safetensors", {"scale": torch.ones(2)}, torch.float16)
        ...     load_file(Path(folder) / "model.safetensors")
        {'scale': tensor([1., 1.], dtype=torch.float16)}
    """
    if file is None:
        for tensor in state.values():
            whole(tensor)
        return
    header, end = {"__metadata__": {"format": "pt", **about}}, 0
    for name, tensor in state.items():
        kind = dtype or tensor.dtype
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": NAMES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            values = whole(tensor).detach().to("cpu", dtype or tensor.dtype).contiguous()
            out.write(values.view(-1).view(torch.uint8).numpy())
