"""The `ddt` command: one verb per step from pictures to a language model that draws, edits and describes them.

A verb imports its module when it is called, so help is immediate.
"""

import os
from typing import Any

import typer
from typer.core import TyperGroup

from ddt_apps.cli import train, use
from ddt_apps.cli.data import data
from ddt_apps.cli.evaluate import evaluate
from ddt_apps.cli.options import Overrides
from ddt_apps.run.signals import LINE, Terminated, unwinding


class Verbs(TyperGroup):
    """Turns what a user can mend into one line and exit code 2; DDT_TRACEBACK=1 shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours show what takes time
        try:
            with unwinding():
                return super().invoke(ctx)
        except (KeyboardInterrupt, Terminated) as stopped:
            typer.echo(f"\n{LINE}", err=True)
            raise typer.Exit(stopped.code if isinstance(stopped, Terminated) else 130) from None
        except (ValueError, OSError) as error:
            if os.environ.get("DDT_TRACEBACK"):
                raise
            from ddt_data.terminal import printable

            typer.echo(f"error: {printable(_one_line(error))}", err=True)
            raise typer.Exit(2) from None


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Turn pictures into a few tokens, and train a language model that draws, edits and describes them.

Start with [bold]ddt demo[/]: it runs every step below on embedded data and writes runs/demo/report.html.

Steps: data, train-tokenizer, tokenize, pretrain, sft. Then: reconstruct, generate, edit, ask, caption, chat.
Training commands take CONFIG [KEY=VALUE]... and continue where they stopped when they are run again.""",
)


def demo(overrides: Overrides = None) -> None:
    """Run the whole chain on embedded data with small presets, about a quarter of an hour on two cores.

    Example: [bold]ddt demo[/], then open runs/demo/report.html

    Settings: name, scenes, held_out, seed, guidance, temperature, and those of the stages as tokenizer.batch_size=32,
    pretrain.optimizer.steps=2000, sft.tasks.edit=0.6 and so on (the files tiny/*.yaml hold what they start from).
    """
    from ddt_apps.demo.run import run_demo

    run_demo(overrides or [])


PANELS = {
    "Start here": (demo,),
    "Train": (
        train.train_tokenizer,
        train.train_renderer,
        train.import_selftok,
        train.tokenize,
        train.pretrain,
        train.sft,
        train.export_run,
        data,
    ),
    "Use": (use.reconstruct, use.generate, use.edit, use.ask, use.caption, use.chat, evaluate),
}
for panel, verbs in PANELS.items():
    for verb in verbs:
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=verb.info.name, rich_help_panel=panel)
        else:
            app.command(verb.__name__.replace("_", "-"), rich_help_panel=panel)(verb)
