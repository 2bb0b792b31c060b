# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/precision.py
"""Precision of inference: exact, or matrices multiplied in bf16; and which devices have instructions for that."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from .limits import check_setting

Precision = Literal["32", "bf16"]  # 32 leaves the numbers as they are, which in a loaded model is fp32


def computing(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Return the context in which a network computes in a precision: for bf16, autocast, which keeps weights and sums.

    Raises:
        ValueError: If there is no such precision.

    Example:
        >>> with computing("bf16", torch.device("cpu")):
        ...     torch.nn.Linear(4, 4)(torch.zeros(1, 4)).dtype
        torch.bfloat16
    """
    check_setting("precision", Precision, precision)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def recorded(precision: Precision) -> dict[str, str]:
    """Return what identities and protocols hold of a precision: nothing of 32, so that those of before stay theirs.

    Example:
        >>> recorded("bf16"), recorded("32")
        ({'precision': 'bf16'}, {})
    """
    return {} if precision == "32" else {"precision": precision}


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bf16 matrices."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    supported = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    if supported is None:
        return False
    emulates = "including_emulation" in inspect.signature(supported).parameters  # which is no instruction
    return supported(including_emulation=False) if emulates else supported()


def slower_here(precision: Precision, device: torch.device) -> str:
    """Return a line for the user where bf16 costs time instead of saving it, else nothing.

    Example:
        >>> slower_here("32", torch.device("cpu"))
        ''
    """
    if precision != "bf16" or multiplies_bf16(device):
        return ""
    return f"precision bf16 is slower than 32 here: this {device.type} has no instructions for it"
