"""The verbs that show what there is: configurations and runs."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import Json, Overrides, page_to_write, say_json, shipped_names
from ddt_apps.run.terminal import harmless


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A shipped configuration, a .yaml file or the folder of a run; without, the shipped ones are listed.",
            autocompletion=shipped_names,
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print a configuration in full: every setting, its value and its meaning, as YAML that can be used again.

    Example: [bold]ddt config tiny/pretrain > mine.yaml[/]

    Then: ddt pretrain mine.yaml data=FOLDER. What a command would train, with its KEY=VALUE: --print-config there.
    """
    from ddt_apps.run.annotated import in_full
    from ddt_apps.train.shipped import settings_of, titles

    if name is None:
        typer.echo(titles())
        return
    run = Path(name).is_dir()
    source = str(Path(name) / "config.yaml") if run else name
    settings = settings_of(source)
    typer.echo(in_full(settings, source, overrides or [], settings.upgraded if run else dict), nl=False)


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs, or folders of runs; by default all in runs.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Page (.html) to write: their curves in common charts, samples, scores, and where settings differ.",
            callback=page_to_write,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List runs: what they are, how far, their last loss; with --out compare them on a page, or report on one.

    Example: [bold]ddt runs runs/small runs/large --out both.html[/]
    """
    from ddt_apps.run.state import RunState, as_table, find_runs

    states = [RunState.read(run) for run in find_runs(folders or [Path("runs")])]
    for state in states if json else ():
        say_json(asdict(state))
    if not json:
        header, rows = as_table(states)
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            typer.echo(harmless(line.rstrip()))
    if out is not None:
        from ddt_apps.evaluation.runs import runs_page
        from ddt_apps.pages.report import save_report

        save_report(out, runs_page(states, shlex.join(["ddt", "runs", *(state.run for state in states)])))
        if not json:
            typer.echo(f"open {out}")
