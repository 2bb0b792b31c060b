"""Arguments and options that several verbs of the command have, and what is tried of them before any work."""

import json
import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ddt_apps.run.home import at_home
from ddt_apps.run.outputs import try_file, try_folder

SEEDS = range(-(2**63), 2**63)  # torch takes as many again, into which chat counts up


def with_home(verb: Callable) -> Callable:
    """Let a verb have its paths with `~` replaced by the home folder."""

    @wraps(verb)
    def run(**values: Any) -> None:
        verb(**{name: _at_home(value) for name, value in values.items()})

    return run


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def paths(value: str) -> str:
    """Replace `~` in text that names paths."""
    return at_home(value)


def picture_to_write(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a picture that cannot be written."""
    if value is not None:
        try_file(f"--{param.name}", value := _at_home(value))
    return value


def page_to_write(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a page that cannot be written."""
    if value is not None:
        try_file(f"--{param.name}", value := _at_home(value), (".html",))
    return value


def gguf_to_write(param: typer.CallbackParam, value: Path) -> Path:
    """Refuse a GGUF file that cannot be written."""
    try_file(f"--{param.name}", value := _at_home(value), (".gguf",))
    return value


def folder_to_write(param: typer.CallbackParam, value: Path) -> Path:
    """Refuse a folder that cannot be made."""
    try_folder(f"--{param.name}", value := _at_home(value))
    return value


def at_least(least: int) -> Callable[..., Any]:
    """Return what refuses numbers that are lower, or not finite."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"--{param.name.replace('_', '-')} {value} must be at least {least}")
        return value

    return check


def finite(param: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse what is no finite number."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"--{param.name} {value} must be a finite number")
    return value


def say_json(values: dict[str, Any]) -> None:
    """Print one line of JSON, in ASCII, which no terminal obeys; a number that is not finite is null."""
    known = {name: None if _is_no_number(value) else value for name, value in values.items()}
    typer.echo(json.dumps(known))


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def device_to_use(value: str) -> str:
    """Let `pick_device` pick it."""
    if value != "auto":
        os.environ["DDT_DEVICE"] = value
    return value


def _seed(value: int) -> int:
    if value not in SEEDS:
        raise ValueError(f"--seed {value} must be {SEEDS.start} to {SEEDS.stop - 1}")
    return value


def shipped_names(incomplete: str) -> list[str]:
    """Complete the name of a configuration."""
    from ddt_apps.run.config import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Config = Annotated[
    str,
    typer.Argument(
        help="A .yaml file, or the name of a configuration that ships with ddt.", autocompletion=shipped_names
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of CONFIG, such as steps=500."),
]
SHIPPED = Path("ddt-small-64")  # in the wheels of ddt-tokenizer and ddt-decoder
Tokenizer = Annotated[
    Path, typer.Option(help="Folder of a trained tokenizer run, such as runs/demo/tokenizer, or one that comes along.")
]
Vae = Annotated[
    str, typer.Option(help="Folder or Hub id of a diffusers AutoencoderKL or AutoencoderTiny.", callback=paths)
]
Out = Annotated[
    Path, typer.Option(help="Picture to write: png, jpg or webp, as its name ends.", callback=picture_to_write)
]
Seed = Annotated[int, typer.Option(help="Another seed, another picture.", callback=_seed)]
Status = Annotated[bool, typer.Option("--status", help="Only say how far --out is: done, left, rate, ETA.")]
Workers = Annotated[int, typer.Option(help="Processes that share the work.", callback=at_least(1))]
# Where a verb computes; it goes into the environment, which processes that a verb starts have too.
Device = Annotated[
    str,
    typer.Option(help="auto (the accelerator if there is one), cpu, cuda, mps, npu or xpu.", callback=device_to_use),
]
Precision = Annotated[
    Literal["32", "bf16"],
    typer.Option(help="32 is exact; bf16 takes less time where the device multiplies in it, and differs a little."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, an object a line.")]
BatchSize = Annotated[int, typer.Option(help="Pictures encoded at once.", callback=at_least(1))]


def out_folder(help: str) -> Any:
    """Return the `--out` of a verb that makes a folder."""
    return typer.Option("--out", help=help, callback=folder_to_write)
