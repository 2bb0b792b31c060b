"""Options that several verbs of the command have."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Where to write the picture.")]
Seed = Annotated[int, typer.Option(help="Another seed, another picture.")]
Workers = Annotated[int, typer.Option(help="Processes that share the work.")]
