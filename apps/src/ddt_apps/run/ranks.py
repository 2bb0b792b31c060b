"""The processes of one run: which of them this is, and how they meet.

torchrun says in environment variables who is who, and Slurm's srun in others. What a run writes and prints is the first
one's.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

# In the environment of processes that `ddt_apps.run.starting` started, and whose errors it tells: its own number.
STARTED_HERE = "DDT_STARTED_HERE"


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return int(os.environ.get("RANK", 0))


def num_ranks() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def started() -> bool:
    """Return whether this process is one of a group, of one or more."""
    return "RANK" in os.environ


def ranks_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def rank_here() -> int:
    """Return which of those on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def tells() -> bool:
    """Return whether it is this process that tells the user what happened."""
    return rank() == 0 and STARTED_HERE not in os.environ


def adopt_slurm() -> None:
    """Put into torchrun's words what srun says, where several tasks were started by it."""
    told = os.environ
    tasks = int(told.get("SLURM_STEP_NUM_TASKS", 1))
    if "RANK" in told or tasks == 1:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment()
    nodes = int(told.get("SLURM_STEP_NUM_NODES", 1))
    told |= {
        "RANK": told["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": told["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": told.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first process alone print; of the others errors are told, by `tell_error`."""
    if rank() == 0:
        yield
        return
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def tell_error(line: str) -> None:
    """Print in a line what ends this process, or leave that to the one that started it."""
    if not told_elsewhere(line):
        if rank() == 0:
            print(f"error: {line}", file=sys.stderr, flush=True)
        else:
            print(f"error: process {rank()}: {line}", file=sys.__stderr__, flush=True)


def tell_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show a fault of ours, or that another process is gone, as `sys.excepthook`."""
    if not told_elsewhere(error):
        sys.__excepthook__(kind, error, trace)


def told_elsewhere(error: BaseException | str) -> bool:
    """Hand what ends this process to the agent that started it; return whether the user hears of it from there."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        stack = "" if isinstance(error, str) else "".join(traceback.format_exception(error))
        line = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        more = {"timestamp": str(int(time.time())), "py_callstack": stack}
        Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": more}}))
    return STARTED_HERE in os.environ


@contextmanager
def met(device: Any) -> Iterator[None]:
    """Let the processes meet, each on its own device of a kind; within the block torch.distributed is up.

    Args:
        device: A `torch.device`.
    """
    if not started():
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type != "cpu":
        torch.accelerator.set_device_index(rank_here())
    dist.init_process_group(dist.get_default_backend_for_device(device.type))
    sys.excepthook = tell_fault  # torch has put its own there
    yield
    dist.destroy_process_group()  # after an error it may wait for others, who wait as well


def wait_for_all() -> None:
    """Return when all processes are here."""
    if num_ranks() > 1:
        import torch.distributed as dist

        dist.barrier()
