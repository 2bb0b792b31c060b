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
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    memory = torch.zeros(reach, dtype=dtype, device=device)
    return (memory.normal_() if dtype.is_floating_point else memory).as_strided(shape, strides)


def _time(op: Any, args: tuple, kwargs: dict, device: torch.device) -> float:
    kwargs |= {"device": device} if "device" in kwargs else {}
    op(*args, **kwargs)  # the first time, kernels and memory are sought
    took, times = 0.0, 0
    while not times or (took < LONG_ENOUGH and times < MOST):
        began = clock(device)
        op(*args, **kwargs)
        took, times = took + clock(device) - began, times + 1
    return took / times


def clock(device: torch.device) -> float:
    """Return seconds: on a CPU those in which this thread computes, so that the work of others does not count."""
    if device.type == "cpu":
        return time.thread_time()
    torch.accelerator.synchronize()
    return time.perf_counter()
