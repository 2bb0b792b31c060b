"""Arguments and options that several verbs of the command have."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="A .yaml file, or the name of a configuration that ships with ddt.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of CONFIG.")
]
Tokenizer = Annotated[Path, typer.Option(help="Folder of a trained tokenizer run, such as runs/demo/tokenizer.")]
Out = Annotated[Path, typer.Option(help="Where to write the picture.")]
Seed = Annotated[int, typer.Option(help="Another seed, another picture.")]
Workers = Annotated[int, typer.Option(help="Processes that share the work.")]
