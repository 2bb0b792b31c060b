"""Reading of Selftok's public `.pth` files, of which each package takes its half."""

import struct
from pathlib import Path

import torch
from torch import Tensor

# What `torch.load` raises of bytes that are no checkpoint: it believes what it reads.
UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
UNREADABLE += (struct.error, torch.serialization.pickle.UnpicklingError)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, without running any code of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no Selftok checkpoint '{path}'")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"'{path}' cannot be read as a checkpoint ({why}); fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is not a Selftok checkpoint: it holds a {type(found).__name__}")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():  # a view that repeats a few numbers may claim any size
        held = value.layout == torch.strided and not value.is_meta and value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > held:
            raise ValueError(f"'{path}' is not a Selftok checkpoint: {name} claims more than it holds")
    return tensors
