"""The processes of one run: which of them this is, how they meet, and how they are started.

torchrun says in environment variables who is who, and Slurm's srun in others; `devices=8` on one machine starts them
here, by the agent that torchrun runs. What a run writes and prints is the first one's.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED_HERE = "DDT_STARTED_HERE"  # in the environment of processes whose errors `start_ranks` tells
GRACE = 600  # seconds that processes have to end a step and save, before they are killed


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
    """Say in torchrun's words what srun says, where several tasks were started by it."""
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
    yield
    dist.destroy_process_group()  # after an error it may wait for others, who wait as well


def wait_for_all() -> None:
    """Return when all processes are here."""
    if num_ranks() > 1:
        import torch.distributed as dist

        dist.barrier()


def start_ranks(count: int) -> None:
    """Run the command of this process in `count` processes on this machine, and wait for them.

    Raises:
        ValueError: If one fails; with its words. All others are ended then.
        KeyboardInterrupt, Terminated: If a signal came; it was handed on, and they had time to save.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ddt_apps.run.signals import stop

    for name in [*logging.root.manager.loggerDict]:  # what the agent says is told below
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"ddt-{os.getpid()}",
        max_restarts=0,
        shutdown_timeout=GRACE,
        local_addr="localhost",
        signals_to_handle="SIGTERM,SIGINT",  # nohup keeps the others away
    )
    os.environ[STARTED_HERE] = "1"
    try:
        elastic_launch(config, sys.executable)("-m", "ddt_apps", *sys.argv[1:])
    except SignalException as stopped:
        raise stop(stopped.sigval) from None
    except ChildFailedError as failed:
        raise _what_happened(failed.failures) from None
    finally:
        del os.environ[STARTED_HERE]


def _what_happened(failures: dict[int, Any]) -> BaseException:
    """Return as an exception what ended a group."""
    from ddt_apps.run.signals import stop

    codes = {failure.exitcode for failure in failures.values()}
    if codes <= {130, 143}:  # a signal came to one of them, and all have saved
        return stop(min(codes) - 128)

    def order(item: tuple[int, Any]) -> tuple:
        number, failure = item  # what was told comes before what killed one, and that before what others say of it
        return failure.exitcode != 2, failure.exitcode >= 0, failure.timestamp, number

    number, first = min(failures.items(), key=order)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        perhaps = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return ValueError(f"process {number} was ended by {name}{perhaps}, and the others were ended then")
    said, stack = str(first.message), ""
    if isinstance(first.message, dict):
        said, stack = first.message["message"], first.message["extraInfo"]["py_callstack"]
    print(stack, end="", file=sys.stderr)
    return ValueError(f"process {number}: {said}" if number else said)
