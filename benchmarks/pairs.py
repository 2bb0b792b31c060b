"""Ways to do the same, compared by CPU time: they take turns, so that what else the machine does falls on all alike.

Not a benchmark but what the others share. Of wall time a shared machine says little, and of one run's CPU time too:
its clock and caches depend on the neighbours. So each round runs every way once, and what counts is the ratio within
a round: the median of the rounds, the smallest and the largest.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def cpu_seconds() -> float:
    """CPU time so far: of this process with all its threads, and of children that have ended, such as workers."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Make a way of some work, which is done once to warm up."""
    work()

    def way() -> float:
        begin = cpu_seconds()
        work()
        return cpu_seconds() - begin

    return way


def take_turns(what: str, ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Print how many times the CPU time of the first way each other one takes, and return the seconds of all rounds.

    Args:
        ways: Names, and what does the work and returns its CPU seconds.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    first, *others = ways
    for name in others:
        ratios = [theirs / ours for theirs, ours in zip(found[name], found[first], strict=True)]
        print(
            f"{what}: {name} takes {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] times the "
            f"CPU time of {first} ({statistics.median(found[first]):.3g} s)",
            flush=True,
        )
    return found


def settings(**defaults: Any) -> tuple[dict[str, Any], list[str]]:
    """Read the command line: key=value, each of the type of its default, and words without a key."""
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if unknown := given.keys() - defaults:
        raise SystemExit(f"no setting {', '.join(unknown)}; there are {', '.join(defaults)}")
    read = {key: type(default)(given.get(key, default)) for key, default in defaults.items()}
    return read, [word for word in sys.argv[1:] if "=" not in word]
