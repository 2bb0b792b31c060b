"""The way that every training run takes: its name, its lock, what an earlier process left, and then its work."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from ddt_apps.run.devices import pick_device
from ddt_apps.run.folder import Run, Savable
from ddt_apps.run.loggers import check_loggers
from ddt_apps.run.origin import sources_of
from ddt_apps.run.own_code import load_callbacks
from ddt_apps.run.ranks import met, num_ranks, rank, ranks_here, started, wait_for_all
from ddt_apps.run.settings import RunSettings
from ddt_apps.run.signals import handled, leave
from ddt_data.shards.lock import locked

RUNS = Path("runs")
Exports = Callable[[], dict[str, Savable]]  # makes the models to export, by the names of their folders
NAME = re.compile(r"\w[\w .,+=@-]*")


def run_folder(name: str, runs: Path = RUNS) -> Path:
    """Return the folder of a run.

    Raises:
        ValueError: If the name is none that a folder in `runs` can have.

    Example:
        >>> run_folder("../mine")
        Traceback (most recent call last):
        ValueError: name ('../mine') must be that of one folder in runs: letters, digits, and then . _ - + = , @
    """
    if not NAME.fullmatch(name):
        rule = "letters, digits, and then . _ - + = , @"
        raise ValueError(f"name ({name!r}) must be that of one folder in {runs}: {rule}")
    return runs / name


def carry_out(
    config: RunSettings, work: Callable[[Run], Exports], runs: Path = RUNS, only_export: bool = False
) -> Path:
    """Do the work of a run, unless it is finished, in this process or as one of several; return its folder.

    Args:
        work: Trains with `Run.fit`, and returns what makes the models to export.
        runs: Where run folders lie.
        only_export: Export what `last.ckpt` holds, and train no further; see `Run`.

    Raises:
        BlockingIOError: If another command is at it.
        FileNotFoundError: If the file of a callback does not exist.
        ValueError: If the run was begun with other settings, data or models, there are not as many processes as
            `devices` says, or a logger or a callback is not there.
    """
    folder = run_folder(config.name, runs)
    if config.devices not in ("auto", ranks_here()):
        raise ValueError(f"devices ({config.devices}) must be as many as processes on this machine: {ranks_here()}")
    if config.batch_size % num_ranks():
        raise ValueError(f"batch_size ({config.batch_size}) must be divisible by the {num_ranks()} that share it")
    if config.sharded and not started() and not only_export:
        raise ValueError("strategy (fsdp2) needs processes that ddt, torchrun or srun has started; use strategy=ddp")
    lock = locked(folder, "is in training by another command") if rank() == 0 else nullcontext()
    with handled(leave), lock:
        run = Run(folder, config, only_export)
        run.clear_leftovers()
        run.begin_with(sources_of(config))
        if not (run.finished or only_export):
            check_loggers(config)
            run.watchers = load_callbacks(config.callbacks)
        if not run.finished:
            with met(pick_device(config.device)):
                wait_for_all()
                exports = work(run)
                if run.writes or config.sharded:  # of what is shared by all, all hand over their part
                    for name, model in exports().items():
                        model.save_pretrained(folder / name)
                run.finish()
                wait_for_all()
        if run.writes:
            state = "is finished" if run.finished else "is not finished and can go on"
            print(f"{folder} {state}: {run.exported()}", flush=True)
    return folder
