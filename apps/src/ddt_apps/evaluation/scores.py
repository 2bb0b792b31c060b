"""Scores with the protocol they were measured by: equal ids may stand in one table, others may not."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddt_apps.run.atomic import writing

FORMAT = 1
ERROR = "_standard_error"  # a figure's name and this is that of its error, a dict where the figure is one


@dataclass(frozen=True)
class Scores:
    """Figures of one model on one benchmark, with all they depend on.

    `protocol` holds everything besides the model: data, split, sizes, counts, seed, the hashes of judges and feature
    networks, the versions of our code. Two scores can be compared if their protocol ids are equal.
    """

    benchmark: str
    model: dict[str, Any]
    protocol: dict[str, Any]
    scores: dict[str, Any]
    controls: dict[str, Any]

    @property
    def protocol_id(self) -> str:
        """Twelve hex digits that stand for the protocol.

        Example:
            >>> a = Scores("scenes", {}, {"seed": 0}, {}, {})
            >>> b = Scores("scenes", {}, {"seed": 1}, {}, {})
            >>> a.protocol_id == b.protocol_id
            False
        """
        return hashlib.sha256(json.dumps([self.benchmark, self.protocol], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def content(self) -> dict[str, Any]:
        """What `scores.json` holds."""
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "protocol_id": self.protocol_id,
            "model": self.model,
            "protocol": self.protocol,
            "scores": self.scores,
            "controls": self.controls,
        }

    def save(self, folder: Path) -> Path:
        """Write `scores.json` atomically; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder / "scores.json") as file:
            file.write_text(json.dumps(self.content, indent=2) + "\n")
        return folder / "scores.json"

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read `scores.json`, or the folder that holds it.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is no file of scores, or was changed by hand so that its id no longer fits.
        """
        file = path / "scores.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such scores; make them with: ddt evaluate")
        try:
            content = json.loads(file.read_text())
            names = ("benchmark", "model", "protocol", "scores", "controls")
            scores, recorded = cls(*(content[name] for name in names)), content["protocol_id"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"'{file}' is no file of scores ({error!r})") from error
        if recorded != scores.protocol_id:
            raise ValueError(f"'{file}' says protocol {recorded}, but what it holds has the id {scores.protocol_id}")
        return scores


def versions() -> dict[str, str]:
    """Return the versions of the code that a score depends on; torch with it, for last digits."""
    return {name: version(name) for name in ("ddt-data", "ddt-apps")} | {"torch": torch.__version__.split("+")[0]}


def compare_scores(paths: Sequence[Path]) -> tuple[list[str], list[list[str]], list[str]]:
    """Put scores of several models side by side.

    Args:
        paths: Files `scores.json`, or folders that hold one.

    Returns:
        Header, rows and warnings; a warning names what differs between two protocols.

    Raises:
        ValueError: If the scores are of different benchmarks.
    """
    all_scores = [Scores.load(Path(path)) for path in paths]
    first = all_scores[0]
    warnings = []
    for path, scores in zip(paths, all_scores, strict=True):
        if scores.benchmark != first.benchmark:
            raise ValueError(f"'{path}' is of benchmark {scores.benchmark}, '{paths[0]}' of {first.benchmark}")
        if scores.protocol_id != first.protocol_id:
            keys = first.protocol.keys() | scores.protocol.keys()
            differing = sorted(k for k in keys if first.protocol.get(k) != scores.protocol.get(k))
            warnings.append(
                f"'{path}' was measured by protocol {scores.protocol_id}, '{paths[0]}' by {first.protocol_id}: they "
                f"differ in {', '.join(differing)} and must not be compared"
            )
    flat = [{name: cell for name, *cell in _figures(scores.scores)} for scores in all_scores]
    names = [name for name in flat[0] if all(name in figures for figures in flat)]
    header = ["figure", *(str(scores.model.get("name", path)) for path, scores in zip(paths, all_scores, strict=True))]
    rows = [[name, *(_four_digits(*figures[name]) for figures in flat)] for name in names]
    rows.append(["protocol", *(scores.protocol_id for scores in all_scores)])
    return header, rows, warnings


def value_of(figures: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    """Return a figure and its standard error, each None where it is not there.

    Args:
        figures: Of a benchmark or a control.
        name: Dotted where the figure is a dict, such as "success.seen".

    Example:
        >>> value_of({"success": {"all": 7.25}, "success_standard_error": {"all": 1.5}}, "success.all")
        (7.25, 1.5)
    """
    first, *rest = name.split(".")
    value, error = figures.get(first), figures.get(first + ERROR)
    for key in rest:
        value, error = (value or {}).get(key), (error or {}).get(key)
    return value, error


def shown(figures: dict[str, Any], name: str, digits: int = 1) -> str:
    """Write what `value_of` returns, so many digits after the point; "-" where there is no figure.

    Example:
        >>> shown({"psnr": 21.5, "psnr_standard_error": 0.125}, "psnr", 2)
        '21.50 \u00b1 0.12'
    """
    value, error = value_of(figures, name)
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.{digits}f}" + ("" if error is None else f" \u00b1 {error:.{digits}f}")


def _four_digits(value: float, error: float | None) -> str:
    return f"{value:.4g}" + ("" if error is None else f" \u00b1 {error:.2g}")


def _figures(
    tree: dict[str, Any], prefix: str = "", errors: dict[str, Any] | None = None
) -> Iterator[tuple[str, float, float | None]]:
    """Numbers of a nested dict by dotted names, each with its standard error or None."""
    for name, value in tree.items():
        error = (errors or {}).get(name, tree.get(name + ERROR))
        if isinstance(value, dict) and not name.endswith(ERROR):
            yield from _figures(value, f"{prefix}{name}.", error)
        elif isinstance(value, int | float) and not name.endswith(ERROR):
            yield prefix + name, float(value), error
