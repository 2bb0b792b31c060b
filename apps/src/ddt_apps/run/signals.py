"""Ctrl-C and SIGTERM: a command ends with 130 or 143, one line and no traceback, whenever they come.

Nothing is lost by ending at once, as every file is written beside itself first. Only a training step is ended and saved
before, and a second signal does not wait for that either.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ddt_apps.run.ranks import tells

SIGNALS = (signal.SIGINT, signal.SIGTERM)
continuing = False  # whether the command goes on where it was when it is run again

Handler = Callable[[int, FrameType | None], None]


def line() -> str:
    """Return what a command says that a signal ended."""
    return "stopped; run the same command again to continue where it was" if continuing else "stopped"


class Terminated(SystemExit):
    """SIGTERM came; what `KeyboardInterrupt` is for Ctrl-C."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


def stop(number: int) -> BaseException:
    """Return the exception that a signal stands for."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Let `handler` have the signals within the block."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@contextmanager
def unwinding() -> Iterator[None]:
    """Within the block a signal raises its exception and a second one leaves; after it nothing disturbs the end.

    Example:
        >>> with unwinding():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        ddt_apps.run.signals.Terminated: 143
        >>> signal.getsignal(signal.SIGTERM) == signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored from then on
        True
    """
    after = {number: signal.signal(number, _unwind) for number in SIGNALS}
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        after = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        raise
    finally:
        for number, handler in after.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None = None) -> None:
    """End the process at once. Its children, which may have its handlers, say nothing."""
    if os.getpid() == _PROCESS and tells():
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which a progress bar hides
        os.write(2, f"{cursor}\n{line()}\n".encode())
    os._exit(128 + number)


class Noted:
    """A handler that only makes a note of the first signal; the second one unwinds, and the third leaves at once.

    Processes that were forked meanwhile leave both to this one, which ends them.
    """

    def __init__(self):
        self.number: int | None = None
        self.times, self.process = 0, os.getpid()

    def listen(self) -> None:
        """Take the signals."""
        for number in SIGNALS:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        if os.getpid() != self.process:
            return
        self.number, self.times = self.number or number, self.times + 1
        if self.times == 2:
            raise Terminated
        if self.times > 2:
            leave(number)


_PROCESS = os.getpid()


def _unwind(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, leave)
    raise stop(number)
