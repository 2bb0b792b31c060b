"""Starting several processes of one run on this machine, by the agent that torchrun runs, and telling how they end."""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from ddt_apps.run.ranks import STARTED_HERE
from ddt_apps.run.signals import stop

GRACE = 600  # seconds that processes have to end a step and save, before they are killed


def start_ranks(count: int) -> None:
    """Run the command of this process in `count` processes on this machine, and wait for them.

    Raises:
        ValueError: If one fails; with its words. All others are ended then.
        KeyboardInterrupt, Terminated: If a signal came; it was handed on, and they had time to save.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    os.environ[STARTED_HERE] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", "ddt_apps", *sys.argv[1:])
    except SignalException as stopped:
        raise stop(stopped.sigval) from None
    except ChildFailedError as failed:
        raise _what_happened(failed.failures) from None
    finally:
        del os.environ[STARTED_HERE]


def end_with_parent() -> None:
    """Let a process that was started so save and end as by SIGTERM, where the one that started it is gone."""
    if STARTED_HERE not in os.environ:
        return

    def watch() -> None:
        while os.getppid() == int(os.environ[STARTED_HERE]):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _what_happened(failures: dict[int, Any]) -> BaseException:
    """Return as an exception what ended a group."""
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
