"""Processes that load nothing: a server has loaded the libraries once, and each is its fork."""

import multiprocessing
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("ddt_apps.cli.main", "ddt_apps.train.export", "ddt_apps.run.fsdp", "omegaconf.grammar_parser", "peft"),
        *("transformers.models.llama.modeling_llama", "diffusers.models.autoencoders.autoencoder_kl"),
        *("torch.distributed.checkpoint", "torch.distributed.launcher.api"),
    ]
)
LONGEST = 120  # seconds that a test waits for processes


def of_torchrun(count):
    """What torchrun tells each of `count` processes."""
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    return [
        {"RANK": i, "WORLD_SIZE": count, "LOCAL_RANK": i, "LOCAL_WORLD_SIZE": count, **meeting} for i in range(count)
    ]


def of_srun(count):
    """What srun tells each of `count` tasks on this machine."""
    job = {"SLURM_JOB_ID": 31, "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_NUM_NODES": 1, "SLURM_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": count, "SLURM_NTASKS_PER_NODE": count, "SLURM_NODEID": 0, "MASTER_PORT": free_port()}
    return [{**job, "SLURM_PROCID": i, "SLURM_LOCALID": i} for i in range(count)]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Group:
    """Processes that do the same work in the working directory of the test.

    Args:
        told: The environment of each; [{}] is one by itself.
        work: A function of a module; the server has not seen those of tests.
    """

    def __init__(self, told, work, *arguments):
        self.said = Path(f"said-{time.monotonic_ns()}").absolute()
        self.processes = [SERVER.Process(target=_fork, args=(own, self.said, work, arguments)) for own in told]
        for process in self.processes:
            process.start()

    def ended(self):
        """Wait for their end; return their exit codes, and what they said."""
        for process in self.processes:
            process.join(LONGEST)
        for process in self.processes:
            process.kill()  # one that waits for another
            process.join()
        return [process.exitcode for process in self.processes], self.said.read_text()


def until(ready, group=None):
    """Wait until something is so, or a process of a group has ended."""
    for _ in range(20 * LONGEST):
        if ready() or (group and any(process.exitcode is not None for process in group.processes)):
            return
        time.sleep(0.05)


def ran(told, work, *arguments):
    return Group(told, work, *arguments).ended()


def ddt(*arguments):
    """Be the command `ddt`."""
    from ddt_apps.__main__ import main

    sys.argv = ["ddt", *arguments]
    main()


def compiled(*arguments):
    """Be the command `ddt`, which compiles from the first step on, without a compiler of C++."""
    from ddt_apps.run import compiling

    compiling.BACKEND = "eager"
    ddt(*arguments, "compile=on")


def trained(*runs):
    """Train several runs one after the other: of each the module of its verb, its settings, and a port to meet at."""
    for module, settings, port in runs:
        os.environ["MASTER_PORT"] = str(port)
        import_module(f"ddt_apps.train.{module}").train(settings)


def stopped(rank, step, number, *arguments):
    """Be the command `ddt`; one rank gets a signal in the middle of a step."""
    from tiny_runs import MODULES

    from ddt_llm.training import LanguageModelTraining

    module = MODULES.get(arguments[0].removeprefix("train-"), LanguageModelTraining)
    training_step = module.training_step

    def stopping(self, *batch):
        if (self.global_rank, self.global_step) == (rank, step):
            os.kill(os.getpid(), number)
        return training_step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_step", stopping)
        ddt(*arguments)


def parent(told, *arguments):
    """Be what `devices=` makes of `ddt`, the parent of several."""
    from ddt_apps.run.ranks import STARTED_HERE

    for own in told:
        own[STARTED_HERE] = os.getpid()
        if not os.fork():
            _fork(own, "said-by-children", ddt, arguments)
    for _ in told:
        os.wait()


def _fork(own, said, work, arguments):
    import torch

    from ddt_apps.run import signals

    os.environ |= {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}
    torch.set_num_threads(1)  # the other threads of OpenMP are not forked
    signals._PROCESS = os.getpid()
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    work(*arguments)
