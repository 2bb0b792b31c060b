"""The verbs that show what there is: configurations and runs."""

from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import Overrides, shipped_names


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
