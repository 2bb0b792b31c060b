"""Compiling the networks of a run with torch.compile: from which step on, and what is told of it."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
from torch import nn

BACKEND = "inductor"  # of torch.compile
LONG = 600.0  # seconds of training; what is shorter is not worth the wait for a compiler
TRIED = 5  # steps of a run, of which the quickest says how long the rest takes
GRAPHS = 32  # of a kind of block: with and without gradient, the last one, batches of none and of one


class Compiling(lightning.Callback):
    """Compiles the networks of a module from a step on; must come before all callbacks that call them.

    It is the blocks that are compiled, not whole networks: those of one class share a graph, so that forty take as long
    as two, and what is special about a network stays outside. Sizes are unknowns of a graph, because packed rows and
    rows of own estimates are others at each step.

    What cannot be compiled runs as it is written, and a line says why.

    Only training steps compile. What looks at a run between two of them, with batches of its own, finds the networks as
    they are written. That does not touch weights, their names, or what is exported.

    Args:
        start: First step that is compiled, `math.inf` for none. None leaves it to the run: its first steps are timed,
            and if the rest takes long, it is compiled from there on.
        decided: Gets the step, or `math.inf`, as soon as the run has decided; returns when that is written down.
        tell: Shows words on the progress line.
    """

    def __init__(self, start: float | None, decided: Callable[[float], None], tell: Callable[[str], None]):
        self.start, self.decided, self.tell = start, decided, tell
        self.begun: list[float] = []  # when steps began
        self.seen: int | None = None  # the step that is under way
        self.compiles = False
        self.failures = Failures()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the step be compiled, if it is its turn."""
        step = trainer.global_step
        if self.start is None and step != self.seen:
            self.seen = step
            self.begun.append(time.perf_counter())
            if step >= TRIED and len(self.begun) > 1:
                took = min(after - before for before, after in zip(self.begun, self.begun[1:], strict=False))
                start = step if took * (trainer.max_steps - step) >= LONG else math.inf
                self.start = trainer.strategy.broadcast(start)  # ranks take as long, but for a little
                self.decided(self.start)
        if self.start is None or step < self.start:
            return
        if not self.compiles:
            self.tell("compiling, which takes a minute or more")
            self.failures.listen()
            for network in module.networks:
                for block in blocks(network):
                    block.compile(backend=BACKEND, dynamic=True, recompile_limit=GRAPHS)
            self.compiles = True
        torch.compiler.set_stance("default")

    def on_train_batch_end(self, *_: Any) -> None:
        """Let nothing be compiled before the next step."""
        if self.compiles:
            torch.compiler.set_stance("force_eager")

    def on_exception(self, *_: Any) -> None:
        """Leave torch as it was; Lightning does not call `teardown` then."""
        self._leave()

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Leave torch as it was."""
        self._leave()

    def _leave(self) -> None:
        if self.compiles:
            torch.compiler.set_stance("default")
            self.failures.ignore()


class Failures(logging.Filter):
    """Prints in a line what torch.compile cannot do, in place of a traceback, and lets it run as it is written."""

    def listen(self) -> None:
        """Take the place of torch's own way."""
        from torch._dynamo import config

        self.told: set[str] = set()
        self.before, config.suppress_errors = config.suppress_errors, True
        logging.getLogger("torch._dynamo.convert_frame").addFilter(self)

    def ignore(self) -> None:
        """Leave torch as it was."""
        from torch._dynamo import config

        config.suppress_errors = self.before
        logging.getLogger("torch._dynamo.convert_frame").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Print what went wrong, once, instead of passing on a record that has a traceback."""
        if not record.exc_info:
            return True
        error = record.exc_info[1]
        error = getattr(error, "inner_exception", error)
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        if why not in self.told:
            self.told.add(why)
            print(f"not everything can be compiled, and runs as it is written: {why}", file=sys.stderr, flush=True)
        return False


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: the items of its lists of modules, of the outermost.

    Example:
        >>> network = nn.Module()
        >>> network.first, network.blocks = nn.Linear(1, 1), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> list(blocks(network))
        [Linear(in_features=2, out_features=2, bias=True), Linear(in_features=2, out_features=2, bias=True)]
    """
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)
