"""Progress of long work: one line with stage, step, rate and time left."""

import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

FIRST_SECONDS, QUIET_SECONDS = 1.0, 10.0  # until the first line and between two, where there is no terminal
WINDOW = 200  # updates over which the rate is measured


class StageProgress:
    """Show how far one stage is: a live bar in a terminal, a line now and every ten seconds in a log.

    The rate and the time left are measured over recent updates, so a resumed run is not credited with old steps.

    Args:
        stage: What is being done, in a word or two.
        total: Steps of the whole stage; the attribute may be set later, when they have been counted.
        start: Steps done before this process.
        unit: What a step is, for the rate ("it" gives "it/s").
        console: Where to write; stderr if None.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> with StageProgress("pack", total=3, console=Console(file=log, width=100)) as progress:
        ...     for step in range(3):
        ...         progress.update(step + 1, loss=0.5)
        >>> log.getvalue().splitlines()[-1].startswith("pack 3/3 loss 0.5")
        True
    """

    def __init__(self, stage: str, total: int, start: int = 0, unit: str = "it", console: Console | None = None):
        self.stage, self.total, self.unit = stage, total, unit
        self.console = console or Console(file=sys.stderr)
        self.facts: dict[str, float] = {}
        self._seen = deque([(time.monotonic(), start)], maxlen=WINDOW)
        self._told = self._seen[-1]  # the update that was printed last
        self._anew = False
        self._started = time.monotonic()
        self._printed = self._started + FIRST_SECONDS - QUIET_SECONDS
        self._bar = None
        if self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(stage, total=total, completed=start, line="starting")

    def __enter__(self) -> "StageProgress":
        if self._bar:
            self._bar.start()
        return self

    def update(self, step: int, **facts: float) -> None:
        """Show that `step` steps are done; `facts` (such as loss=0.12) stay on the line until they are replaced."""
        self.facts |= facts
        if step < self._seen[-1][1] or self._anew:
            self._seen.clear()  # another part of the stage, counted anew
            self._anew = False
        self._seen.append((time.monotonic(), step))
        if self._bar:
            self._bar.update(self._task, total=self.total, completed=step, line=self._line())
        elif time.monotonic() - self._printed >= QUIET_SECONDS:
            self._print()

    def tell(self, words: str) -> None:
        """Show at once what is being done in place of steps; the rate is then that of the steps after it."""
        self._anew = True
        step = f"{self._seen[-1][1]}/{self.total}"
        if self._bar:
            self._bar.update(self._task, line=f"{step}  {words}")
        else:
            self._printed = time.monotonic()
            self.console.print(f"{self.stage} {step} {words}", highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._seen[-1] is not self._told:
            self._print()

    def _print(self) -> None:
        self._printed, self._told = time.monotonic(), self._seen[-1]
        self.console.print(f"{self.stage} {self._line()}", highlight=False, soft_wrap=True)

    def _line(self) -> str:
        (then, first), (now, step) = self._seen[0], self._seen[-1]
        rate = (step - first) / (now - then) if now > then else 0.0
        parts = [f"{step}/{self.total}", *(f"{name} {value:.4g}" for name, value in self.facts.items())]
        if rate:
            parts.append(f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self.unit}")
        if step < self.total:
            parts.append(f"ETA {clock((self.total - step) / rate)}" if rate else "ETA -")
        else:
            parts.append(f"in {clock(now - self._started)}")
        return " ".join(parts) if not self._bar else "  ".join(parts)


def clock(seconds: float) -> str:
    """Return a time in hours, minutes and seconds.

    Example:
        >>> clock(61), clock(3600)
        ('1:01', '1:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
