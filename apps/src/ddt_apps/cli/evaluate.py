"""`ddt evaluate ...`: the verbs that measure what a model can do."""

from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import Device, paths

evaluate = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    help="""Measure what a model can do, each figure beside its ceiling and chance.

MODEL is the folder of a run, or file.py:function for a model of your own behind an adapter. Writes scores.json and
index.html to MODEL/evaluation, or where --out says. Runs compute exactly; with precision=bf16 in less time where the
device can, and the protocol id says so.""",
)

Source = Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a run, or file.py:function.", callback=paths)]
Folder = Annotated[Path | None, typer.Option("--out", help="Where to write; by default into the run.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; see above.")]


def _evaluate(benchmark: str, model: str, out: Path | None, settings: list[str] | None) -> None:
    from importlib import import_module

    from ddt_apps.evaluation.verbs import run_evaluation

    run_evaluation(import_module(f"ddt_apps.evaluation.{benchmark}"), model, out, settings or [])


@evaluate.command("scenes")
def evaluate_scenes(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Draw SceneEval's 540 prompts and judge the pictures strictly.

    Example: [bold]ddt evaluate scenes runs/demo/pretrain level=tiny[/]

    Settings: level (tiny, standard, hard), pictures (for each prompt), seed, guidance, temperature, precision (32,
    bf16), judge, second_judge, backgrounds (folder of pictures behind the real scenes), clip (folder of a CLIP model).
    """
    _evaluate("scenes", model, out, settings)


@evaluate.command("reconstruction")
def evaluate_reconstruction(
    model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto"
) -> None:
    """Turn pictures into ids and back: PSNR, SSIM, bits, prefixes, and more where networks are installed.

    Example: [bold]ddt evaluate reconstruction runs/demo/tokenizer level=tiny[/]

    Settings: data (folder of picture shards; else held-out scenes), level, count, seed, precision (32, bf16), inception
    (TorchScript file, for rFID), lpips (alex, vgg or squeeze, where torchvision has the weights).
    """
    _evaluate("reconstruction", model, out, settings)


@evaluate.command("order")
def evaluate_order(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Measure whether ids go from coarse to fine: pictures from either end of them, and what each part tells.

    Example: [bold]ddt evaluate order runs/demo/tokenizer level=tiny[/]

    data=FOLDER measures other pictures, of which the judge then reads nothing; beside=RUN another tokenizer alike.

    Settings: data (a shard folder), level, count, seed, precision (32, bf16), judge, beside (another run).
    """
    _evaluate("order", model, out, settings)


@evaluate.command("edits")
def evaluate_edits(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Edit held-out scenes whose exact result is known.

    Example: [bold]ddt evaluate edits runs/demo/sft level=tiny[/]

    Settings: level, count, seed, precision (32, bf16), judge.
    """
    _evaluate("edits", model, out, settings)


@evaluate.command("answers")
def evaluate_answers(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Ask questions about held-out scenes; beside the score what one gets without looking.

    Example: [bold]ddt evaluate answers runs/demo/sft level=tiny[/]

    Settings: level, count, seed, precision (32, bf16).
    """
    _evaluate("answers", model, out, settings)


@evaluate.command("captions")
def evaluate_captions(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Describe held-out scenes and parse what was said.

    Example: [bold]ddt evaluate captions runs/demo/pretrain level=tiny[/]

    Settings: level, count, seed, precision (32, bf16).
    """
    _evaluate("captions", model, out, settings)


@evaluate.command("language")
def evaluate_language(model: Source, settings: Settings = None, out: Folder = None, device: Device = "auto") -> None:
    """Foretell the ids of held-out pictures from their captions, in bits; beside it what another caption gives.

    Example: [bold]ddt evaluate language runs/demo/pretrain level=tiny[/]

    Settings: level, count, seed, precision (32, bf16).
    """
    _evaluate("language", model, out, settings)


@evaluate.command("table")
def evaluate_table(
    scores: Annotated[list[Path], typer.Argument(help="Folders that hold scores.json, of one benchmark.")],
) -> None:
    """Put scores side by side; warns where they were not measured alike.

    Example: [bold]ddt evaluate table runs/a/evaluation/scenes runs/b/evaluation/scenes[/]
    """
    from ddt_apps.evaluation.verbs import print_comparison

    print_comparison(scores)
