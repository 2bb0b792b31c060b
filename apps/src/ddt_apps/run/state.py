"""How runs stand, read from what they have written; no model code is loaded for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from ddt_apps.run.metrics import last_row
from ddt_apps.run.yaml_file import read_yaml


@dataclass(frozen=True)
class RunState:
    """A run as it stands; the step and the loss are those of the last row of `metrics.csv`."""

    run: str  # its folder
    verb: str  # that trains it; "" if it was begun by an older version
    state: Literal["running", "stopped", "finished"]
    step: int
    steps: int | None  # that are wanted
    loss: float | None
    written: str  # when, the last time, as in 2026-11-27 14:05

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state of the run in a folder.

        Raises:
            ValueError: If its config.yaml or metrics.csv is damaged.
        """
        config, metrics = folder / "config.yaml", folder / "metrics.csv"
        row = last_row(metrics)
        when = max(file.stat().st_mtime for file in (config, metrics) if file.exists())
        state = "finished"
        if not (folder / "done.json").exists():
            from ddt_data.shards.lock import is_locked  # torch comes with it, for which a list need not wait

            state = "running" if is_locked(folder) else "stopped"
        return cls(
            run=str(folder),
            verb=_verb(folder / "origin.json"),
            state=state,
            step=int(row.get("step", 0)),
            steps=_steps(read_yaml(config)),
            loss=row.get("loss"),
            written=f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}",
        )


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders among `folders` and up to two levels below them, such as runs/demo/sft.

    Raises:
        FileNotFoundError: If a folder does not exist, or there is no run in any.
    """
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    below = [path for folder in folders for depth in ("*", "*/*") for path in sorted(folder.glob(depth))]
    runs = [path for path in dict.fromkeys([*folders, *below]) if _is_run(path)]
    if not runs:
        raise FileNotFoundError(f"no run in {', '.join(map(str, folders))}; ddt pretrain and other verbs make them")
    return runs


def _is_run(folder: Path) -> bool:
    written = (folder / "origin.json").exists() or (folder / "metrics.csv").exists()
    return written and (folder / "config.yaml").exists()


def as_table(states: Sequence[RunState]) -> tuple[list[str], list[list[str]]]:
    """Return states as a header and rows of words.

    Example:
        >>> as_table([RunState("runs/a", "sft", "stopped", 20, 50, 0.51234, "2026-11-27 14:05")])[1]
        [['runs/a', 'sft', 'stopped', '20/50', '0.5123', '2026-11-27 14:05']]
    """
    rows = []
    for each in states:
        steps = "?" if each.steps is None else each.steps
        loss = "-" if each.loss is None else f"{each.loss:.4g}"
        rows.append([each.run, each.verb or "?", each.state, f"{each.step}/{steps}", loss, each.written])
    return ["run", "verb", "state", "steps", "loss", "written"], rows


def _verb(origin: Path) -> str:
    try:
        return str(json.loads(origin.read_text(encoding="utf-8"))["verb"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""


def _steps(config: dict[str, Any]) -> int | None:
    """Return how many steps are wanted, wherever a verb has that setting."""
    for key in ("steps", "optimizer", "training"):
        found = config.get(key)
        found = _steps(found) if isinstance(found, dict) else found
        if isinstance(found, int):
            return found
    return None
