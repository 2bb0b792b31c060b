"""What `ddt evaluate` does: load, measure, write scores.json and the page, print the table."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ddt_apps.evaluation.answers import AnswersSettings, evaluate_answers
from ddt_apps.evaluation.captions import CaptionsSettings, evaluate_captions
from ddt_apps.evaluation.edits import EditsSettings, evaluate_edits
from ddt_apps.evaluation.models import load_model
from ddt_apps.evaluation.page import page, rows_of_scenes
from ddt_apps.evaluation.reconstruction import ReconstructionSettings, evaluate_reconstruction
from ddt_apps.evaluation.scenes import ScenesSettings, evaluate_scenes
from ddt_apps.evaluation.scores import Scores, beside_controls, compare_scores
from ddt_apps.pages.report import save_report
from ddt_apps.run.config import load_config

BENCHMARKS = {
    "scenes": (ScenesSettings, evaluate_scenes),
    "reconstruction": (ReconstructionSettings, evaluate_reconstruction),
    "edits": (EditsSettings, evaluate_edits),
    "answers": (AnswersSettings, evaluate_answers),
    "captions": (CaptionsSettings, evaluate_captions),
}


def run_evaluation(benchmark: str, source: str, out: Path | None, overrides: list[str]) -> Scores:
    """Evaluate a model and write `scores.json` and `index.html`.

    Args:
        benchmark: One of `BENCHMARKS`.
        source: See `load_model`.
        out: Folder to write to; by default `evaluation/<benchmark>` in the run, for an adapter in the current folder.
        overrides: Settings as `key=value`.
    """
    settings_class, evaluate = BENCHMARKS[benchmark]
    settings = load_config(settings_class, None, overrides)
    drawing = {name: getattr(settings, name) for name in ("guidance", "temperature") if hasattr(settings, name)}
    model = load_model(source, **drawing)
    is_run = Path(source).is_dir()
    folder = out or (Path(source) if is_run else Path()) / "evaluation" / benchmark
    scores, shown = evaluate(model, settings, name=Path(source).name if is_run else source)
    scores.save(folder)
    command = " ".join(["ddt evaluate", benchmark, source, *overrides])
    save_report(folder / "index.html", page(scores, shown, command))
    if benchmark == "scenes":
        print_table(*rows_of_scenes(scores))
        agree, prefixes = scores.controls["judges_agree"], scores.controls.get("tokenizer_prefixes", {})
        print(f"the judges agree on {agree['drawn']:.1f} % of drawn and {agree['real']:.1f} % of real pictures")
        if prefixes:
            kept = ", ".join(f"{n}: {overall:.1f}" for n, overall in prefixes.items())
            print(f"the tokenizer's ceiling from its n coarsest ids: {kept}")
    else:
        print_table(*beside_controls(scores))
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
