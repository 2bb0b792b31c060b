"""Devices: the only module of the repository that chooses one.

Everything else takes a `torch.device` from here and works on any that torch knows.
"""

import os
import shutil
import sys
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec

import torch

from ddt_tokenizer.precision import Precision, multiplies_bf16, slower_here

DEVICE = "DDT_DEVICE"  # in the environment: what device=auto means
NAMES = ("cpu", "cuda", "mps", "npu", "xpu")
KNOWN = ("cpu", "cuda", "mps")  # to Lightning
NEEDS = {
    "cuda": "a CUDA build of torch, and a driver of NVIDIA",
    "mps": "a Mac with Apple silicon",
    "npu": "torch-npu of torch's version, and Ascend's CANN with its set_env.sh sourced",
    "xpu": "an XPU build of torch, and a driver of Intel",
}
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@cache
def backends() -> dict[str, str]:
    """Load what is installed to add devices to torch; return by name what went wrong, "" for what is loaded.

    `ddt` keeps torch from doing it at its import, which fails where such a package lacks its driver.
    """
    found = {}
    for backend in entry_points(group="torch.backends"):
        try:
            backend.load()()
            found[backend.name] = ""
        except (ImportError, AttributeError, OSError, RuntimeError, ValueError) as error:
            found[backend.name] = f"{type(error).__name__}: {error}"
    return found


def pick_device(name: str = "auto") -> torch.device:
    """Turn a setting into a device that is present.

    Args:
        name: "auto" (what DDT_DEVICE says, or else the accelerator if there is one, or else the CPU), or one of
            `NAMES`.

    Raises:
        ValueError: If there is no such name, or this machine has no such device; says what was found.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = os.environ.get(DEVICE) or "auto"
    if name not in ("auto", *NAMES):
        raise ValueError(f"device {name!r} must be auto, {', '.join(NAMES)}")
    if name == "cpu":
        return torch.device("cpu")
    failed = {package: why for package, why in backends().items() if why}
    present = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        if failed and present is None:
            _say_once(f"computing on the CPU: {_failures(failed)}")
        return torch.device("cpu") if present is None else torch.device(present.type)
    if present is None or present.type != name:
        here = "no accelerator" if present is None else present.type
        why = f"; {_failures(failed)}" if failed else ""
        raise ValueError(
            f"device {name!r} is not here: torch {torch.__version__} finds {here}{why}; it needs {NEEDS[name]}; or set "
            f"device=cpu"
        )
    return torch.device(name)


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def _failures(failed: dict[str, str]) -> str:
    return ", ".join(f"{package} is installed and does not load ({why})" for package, why in failed.items())


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
        return "bf16-mixed" if multiplies_bf16(device) else "32-true"
    precision = SHORT.get(str(setting), str(setting))
    if precision not in PRECISIONS:
        raise ValueError(f"precision {setting!r} must be auto, {', '.join(PRECISIONS)}, or short {', '.join(SHORT)}")
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("precision 16-mixed is none of the CPU; use precision=bf16-mixed, 32-true or auto")
    return precision
