"""Scores with the protocol they were measured by: equal ids may stand in one table, others may not."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddt_apps.run.atomic import writing

FORMAT = 1


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

        >>> a = Scores("scenes", {}, {"seed": 0}, {}, {})
        >>> b = Scores("scenes", {}, {"seed": 1}, {}, {})
        >>> a.protocol_id == b.protocol_id
        False
        """
        return hashlib.sha256(json.dumps([self.benchmark, self.protocol], sort_keys=True).encode()).hexdigest()[:12]

    def save(self, folder: Path) -> Path:
        """Write `scores.json` atomically; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "protocol_id": self.protocol_id,
            "model": self.model,
            "protocol": self.protocol,
            "scores": self.scores,
            "controls": self.controls,
        }
        with writing(folder / "scores.json") as file:
            file.write_text(json.dumps(content, indent=2) + "\n")
        return folder / "scores.json"

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read `scores.json`, or the folder that holds it.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It is no file of scores, or was changed by hand so that its id no longer fits.
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
    """Versions of the code that a score depends on; torch with it, for last digits."""
    return {name: version(name) for name in ("ddt-data", "ddt-apps")} | {"torch": torch.__version__.split("+")[0]}


def compare_scores(paths: Sequence[Path]) -> tuple[list[str], list[list[str]], list[str]]:
    """Put scores of several models side by side.

    Args:
        paths: Files `scores.json`, or folders that hold one.

    Returns:
        Header, rows and warnings; a warning names what differs between two protocols.

    Raises:
        ValueError: The scores are of different benchmarks.
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
    flat = [dict(_figures(scores.scores)) for scores in all_scores]
    names = [name for name in flat[0] if all(name in figures for figures in flat)]
    header = ["figure", *(str(scores.model.get("name", path)) for path, scores in zip(paths, all_scores, strict=True))]
    rows = [[name, *(f"{figures[name]:.4g}" for figures in flat)] for name in names]
    rows.append(["protocol", *(scores.protocol_id for scores in all_scores)])
    return header, rows, warnings


def beside_controls(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Put the scores of one model beside those of its controls: header and rows.

    A control that has none of the model's figures gets rows of its own.

    >>> header, rows = beside_controls(Scores("edits", {"name": "mine"}, {}, {"l1": 2.0}, {"copy": {"l1": 9.0}}))
    >>> header, rows[0]
    (['figure', 'mine', 'copy'], ['l1', '2', '9'])
    """
    figures = dict(_figures(scores.scores))
    controls = {name: dict(_figures(control)) for name, control in scores.controls.items()}
    columns = {name: found for name, found in controls.items() if found.keys() & figures.keys()}
    header = ["figure", str(scores.model.get("name", "model")), *(name.replace("_", " ") for name in columns)]
    rows = [
        [name, f"{value:.4g}", *(f"{found[name]:.4g}" if name in found else "-" for found in columns.values())]
        for name, value in figures.items()
    ]
    for name, found in controls.items():
        if name not in columns:
            rows += [[f"{name}.{key}", f"{value:.4g}", *["-"] * len(columns)] for key, value in found.items()]
    return header, rows


def _figures(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested dict by dotted names."""
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _figures(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found.append((prefix + name, float(value)))
    return found
