"""Devices: the only module of the repository that names them.

Everything else takes a `torch.device` from here and works on any. Accelerators beyond the three below need their own
Lightning strategy and precision plugin (Lightning would put them on the CPU without saying so), so they are refused.
"""

import os
import shutil
import sys
from importlib.util import find_spec

import torch

from ddt_tokenizer.precision import Precision, multiplies_bf16, slower_here

SUPPORTED = ("cpu", "cuda", "mps")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def pick_device(name: str = "auto") -> torch.device:
    """Turn a setting into a device that is present.

    Args:
        name: "auto" (the accelerator if there is one, else the CPU), "cpu", "cuda" or "mps".

    Raises:
        ValueError: If the name is not supported, or this machine has no such device.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    present = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return present if present is not None and present.type in SUPPORTED else torch.device("cpu")
    if name not in SUPPORTED:
        raise ValueError(f"device {name!r} is not supported; use auto, {', '.join(SUPPORTED)}")
    if name != "cpu" and (present is None or present.type != name):
        raise ValueError(f"device {name!r} is not available on this machine; use device=auto or device=cpu")
    return torch.device(name)


def pick_device_for(precision: Precision) -> torch.device:
    """Pick the device of this machine for inference, and say on stderr if the precision costs time there."""
    device = pick_device()
    if line := slower_here(precision, device):
        print(line, file=sys.stderr)
    return device


def pick_compile(setting: str, device: torch.device) -> str:
    """Turn the setting `compile` of training into what the device can do: "on", "off", or "auto", which is both.

    torch.compile writes C++ for the CPU and Triton for CUDA.

    Raises:
        ValueError: If the setting is "on", and the device has no compiler.

    Example:
        >>> pick_compile("auto", torch.device("mps"))
        'off'
    """
    lacks = {
        "cpu": "" if shutil.which(_cpp()) else f"a C++ compiler, and {_cpp()} is not here; install it, name one in CXX",
        "cuda": "" if find_spec("triton") else "the package triton; pip install triton",
    }.get(device.type, f"device cpu or cuda, not {device.type}; set device=cpu")
    if setting == "on" and lacks:
        raise ValueError(f"compile=on needs {lacks}, or begin with compile=off")
    return "off" if lacks else setting


def _cpp() -> str:
    """Return the compiler that torch.compile takes."""
    return os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))


def pick_precision(setting: str | int, device: torch.device) -> str:
    """Turn a setting of training into Lightning's name of a precision.

    A CPU with bf16 instructions is 2 to 4 times faster in bf16 than in fp32, one without is 10 to 100 times slower.

    Args:
        setting: "auto" (the fastest safe one of the device), one of `PRECISIONS`, or one of Lightning's short names.
        device: That computes.

    Raises:
        ValueError: If there is no such precision, or the device has none.

    Example:
        >>> pick_precision(32, torch.device("cpu"))
        '32-true'
    """
    if setting == "auto":
        if device.type == "cuda":
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        return "bf16-mixed" if device.type == "cpu" and multiplies_bf16(device) else "32-true"
    precision = SHORT.get(str(setting), str(setting))
    if precision not in PRECISIONS:
        raise ValueError(f"precision {setting!r} must be auto, {', '.join(PRECISIONS)}, or short {', '.join(SHORT)}")
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("precision 16-mixed is none of the CPU; use precision=bf16-mixed, 32-true or auto")
    return precision
