"""One page of one run or several: how they stand, their curves, samples, scores and settings."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddt_apps.evaluation.page import Section, spread
from ddt_apps.evaluation.scores import compare_scores
from ddt_apps.pages.chart import NUM_COLOURS, line_chart
from ddt_apps.pages.report import columns, note, report, section, strip, table
from ddt_apps.run.metrics import read_metrics
from ddt_apps.run.state import RunState, as_table
from ddt_apps.run.yaml_file import read_yaml

SAMPLES, SIDE = 4, 512  # pictures of a run, and pixels of each


def runs_page(states: Sequence[RunState], command: str) -> str:
    """Write the page: HTML that needs nothing else, made of what the runs have written.

    Args:
        states: Of the runs.
        command: What made the page.

    Raises:
        ValueError: If a file of a run is damaged.
    """
    names = [state.run for state in states]
    stand = section("State", "As it was when this page was made.", table(*as_table(states)))
    sections = [stand, _curves(names), *_samples(names), *_scores(names), _settings(names)]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    intro = "Nothing was measured for this page: it shows what training and ddt evaluate have written."
    return report(title, intro, sections, foot=f"Made by: {command}")


def _curves(names: list[str]) -> Section:
    curves = {name: read_metrics(Path(name) / "metrics.csv") for name in names}
    charts = []
    for figure in dict.fromkeys(figure for each in curves.values() for figure in each):
        there = {name: each.get(figure, ([], [])) for name, each in curves.items()}  # a run keeps its colour
        if any(math.isfinite(y) for _, ys in there.values() for y in ys):
            charts.append(line_chart(there, "step", figure))
    pieces = [columns(*charts)] if charts else [note("Nothing is measured yet.")]
    if len(names) > NUM_COLOURS:
        pieces.append(note(f"Of {len(names)} runs only {NUM_COLOURS} have a colour of their own."))
    return section("Curves", "What metrics.csv holds.", *pieces)


def _samples(names: list[str]) -> Iterator[Section]:
    parts = []
    for name in names:
        files = sorted((Path(name) / "samples").glob("*.png"))
        chosen = [files[i] for i in spread(range(len(files) - 1), SAMPLES - 1)] + files[-1:]
        rows = [(name, [(np.asarray(Image.open(file).convert("RGB")), f"step {int(file.stem)}")]) for file in chosen]
        parts += [(name, strip(rows, SIDE))] if rows else []
    if parts:
        yield section("Samples", "Held-out pictures, above, and as they were drawn on the way.", *parts)


def _scores(names: list[str]) -> Iterator[Section]:
    tables = []
    for benchmark in sorted({file.parent.name for name in names for file in _scores_of(name)}):
        files = {name: file for name in names for file in _scores_of(name) if file.parent.name == benchmark}
        header, rows, warnings = compare_scores(list(files.values()))
        tables.append((benchmark, table([header[0], *files], rows) + "".join(map(note, warnings))))
    if tables:
        yield section("Scores", "Of ddt evaluate; each has a page of its own in evaluation/.", *tables)


def _scores_of(name: str) -> list[Path]:
    return sorted(Path(name).glob("evaluation/*/scores.json"))


def _settings(names: list[str]) -> Section:
    given = [dict(_flat(read_yaml(Path(name) / "config.yaml"))) for name in names]
    rows = []
    for key in dict.fromkeys(key for each in given for key in each):
        values = [each.get(key, "-") for each in given]
        if len(names) == 1 or len(set(values)) > 1:
            rows.append([key, *values])
    about = "Those of config.yaml." if len(names) == 1 else "Those of config.yaml that are not alike."
    return section("Settings", about, table(["setting", *names], rows))


def _flat(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value if isinstance(value, str) else json.dumps(value)
