"""How long operators take on this machine: each kind is run a few times, by itself."""

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ddt_apps.machine.ledger import Spec, thaw
from ddt_apps.run.progress import StageProgress

LONG_ENOUGH, MOST = 0.02, 20  # seconds and times that an operator is run for


def seconds_of(operators: Counter, device: torch.device) -> tuple[float, float]:
    """Measure what a step takes that calls these operators so often.

    Returns:
        Seconds, and the share of calls that could be run.
    """
    seconds = tried = 0.0
    with StageProgress("timing", len(operators), unit="operators") as progress, torch.no_grad():
        for done, ((op, args, kwargs), times) in enumerate(operators.items(), 1):
            try:
                seconds += times * _time(op, *thaw((args, dict(kwargs)), lambda spec: _filled(spec, device)), device)
                tried += times
            except (RuntimeError, TypeError, IndexError):
                pass  # one that wants values which fit each other
            progress.update(done)
    return seconds, tried / max(1, operators.total())


def _filled(spec: Spec, device: torch.device) -> Tensor:
    shape, strides, dtype = spec
    tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
    return tensor.normal_() if dtype.is_floating_point else tensor.zero_()


def _time(op: Any, args: tuple, kwargs: dict, device: torch.device) -> float:
    kwargs |= {"device": device} if "device" in kwargs else {}
    op(*args, **kwargs)  # the first time, kernels and memory are sought
    took, times = 0.0, 0
    while not times or (took < LONG_ENOUGH and times < MOST):
        _wait(device)
        began = time.perf_counter()
        op(*args, **kwargs)
        _wait(device)
        took, times = took + time.perf_counter() - began, times + 1
    return took / times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
