"""The metrics file of a run: one CSV row per logged step, kept exact across interruptions."""

import csv
import io
import os
import sys
from pathlib import Path

from ddt_apps.run.atomic import writing


class MetricsFile:
    """Append rows to `metrics.csv`; every row is on disk when `append` returns.

    Args:
        path: The file; it need not exist.
        step: The step that training continues from: later rows, and one that was cut off, are dropped. A file that
            another program has changed beyond reading is set aside.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     metrics = MetricsFile(Path(folder) / "metrics.csv")
        ...     metrics.append(10, {"loss": 0.5})
        ...     metrics.append(20, {"loss": 0.25, "usage": 1.0})
        ...     read_metrics(metrics.path)["loss"]
        ([10, 20], [0.5, 0.25])
    """

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        self.columns: list[str] = ["step"]
        if path.exists():
            try:
                rows = _rows(path)
            except ValueError as error:
                aside = next(
                    aside for i in range(1, sys.maxsize) if not (aside := path.with_suffix(f".{i}.csv")).exists()
                )
                os.replace(path, aside)
                print(
                    f"{error}; it is {aside} now, and a new one begins after step {step}", file=sys.stderr, flush=True
                )
                return
            kept = [row for row in rows if int(row["step"]) <= step]
            self.columns = list(
                dict.fromkeys(["step", *(name for row in kept for name, value in row.items() if value)])
            )
            self._rewrite(kept)

    def append(self, step: int, values: dict[str, float]) -> None:
        """Write one row; a name not seen before adds a column."""
        row = {"step": str(step)} | {name: f"{value:.6g}" for name, value in values.items()}
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite([*_rows(self.path), row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with writing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read a metrics file as one curve per column: name -> (steps, values).

    Raises:
        ValueError: If it is none.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in _rows(path):
        for name, value in row.items():
            if name != "step" and value:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return curves


def last_row(path: Path) -> dict[str, float]:
    """Return the figures of the last whole row of a metrics file, "step" among them; {} if there is none.

    Raises:
        ValueError: If it is none.
    """
    rows = _rows(path)[-1:]
    return {name: float(value) for row in rows for name, value in row.items() if value}


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a file, each with all columns: numbers, or nothing."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before it
        header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True)
        if header[0] != "step" or len(set(header)) < len(header):
            raise ValueError("no column step")
        for row in rows:
            _ = int(row[0]), [float(value) for value in row[1:] if value]
        return [dict(zip(header, row, strict=True)) for row in rows]
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(f"{path} is not as a run wrote it; another program may have changed it") from error
