"""What `ddt evaluate` does: load, measure, write scores.json and the page, print the tables."""

import sys
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from ddt_apps.evaluation.models import load_model
from ddt_apps.evaluation.page import document
from ddt_apps.evaluation.scores import Scores, compare_scores
from ddt_apps.pages.report import save_report
from ddt_apps.run.config import load_config
from ddt_apps.run.outputs import try_folder
from ddt_tokenizer.codec import run_of


def run_evaluation(benchmark: ModuleType, source: str, out: Path | None, overrides: list[str]) -> Scores:
    """Evaluate a model and write `scores.json` and `index.html`.

    Args:
        benchmark: A module of this folder with `Settings`, `evaluate` and `page`.
        source: See `load_model`.
        out: Folder to write to; by default `evaluation/<benchmark>` in the run, for an adapter in the current folder.
        overrides: Settings as `key=value`.
    """
    settings = load_config(benchmark.Settings, None, overrides)
    names = ("guidance", "temperature", "precision", "denoising")
    of_runs = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    run = run_of(source) if Path(source).is_dir() else None
    folder = out or (run or Path()) / "evaluation" / benchmark.__name__.rpartition(".")[2]
    try_folder("--out", folder)
    model = load_model(source, **of_runs)
    scores, shown = benchmark.evaluate(model, settings, name=run.name if run else source)
    scores.save(folder)
    page = benchmark.page(scores, shown)
    command = " ".join(["ddt evaluate", scores.benchmark, source, *overrides])
    save_report(folder / "index.html", document(scores, page, command))
    for table in page.tables:
        print_table(*table)
    print(f"protocol {scores.protocol_id}; open {folder / 'index.html'}")
    return scores


def print_comparison(paths: list[Path]) -> None:
    """Print scores of several models side by side, with a warning where they cannot be compared."""
    header, rows, warnings = compare_scores(paths)
    print_table(header, rows)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table to the terminal."""
    shown = Table(*header)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)
