"""The `ddt` command: one verb per step from pictures to a language model that draws, edits and describes them.

A verb imports its module when it is called, so help is immediate.
"""

import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddt_apps.cli import show, train, use
from ddt_apps.cli.data import data
from ddt_apps.cli.evaluate import evaluate
from ddt_apps.cli.export import export
from ddt_apps.cli.options import Config, Overrides, with_home
from ddt_apps.run import signals
from ddt_apps.run.outputs import try_file
from ddt_apps.run.ranks import tell_error, tells
from ddt_apps.run.signals import Terminated, unwinding
from ddt_apps.run.terminal import harmless

# Verbs that go on where they were when they are run again.
CONTINUING = {"demo", "train-vae", "train-tokenizer", "train-renderer", "pretrain", "sft", "adapt", "rl", "tokenize"}
CONTINUING |= {"data scenes", "data pack", "data fetch", "data latents"}
# Libraries show errors only, and no bars: ours show what takes time.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
MEMORY = "lower batch_size (--batch-size), or set precision=bf16; ddt plan says what a training takes, and what helps"
UsageError = typer.BadParameter.__base__  # of wrong words on the command line; typer has no other name for it


class Verbs(TyperGroup):
    """Turns what a user can mend into one line and exit code 2; DDT_TRACEBACK=1 shows where it came from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        signals.continuing = bool(CONTINUING & {*args[:1], " ".join(args[:2])})
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            with unwinding(), warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.filterwarnings("ignore", module=r"(?!ddt_)")  # advice of libraries to their callers
                return super().invoke(ctx)
        except (KeyboardInterrupt, Terminated) as stopped:
            if tells():
                typer.echo(f"\n{signals.line()}", err=True)
            raise typer.Exit(stopped.code if isinstance(stopped, Terminated) else 130) from None
        except (ValueError, OSError) as error:
            if os.environ.get("DDT_TRACEBACK"):
                raise
            tell_error(_one_line(error))
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if os.environ.get("DDT_TRACEBACK") or not _out_of_memory(error):
                raise
            tell_error(f"{_one_line(error).partition('. ')[0]}; {MEMORY}")
            raise typer.Exit(2) from None
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # the help is shown already
                raise
            said = " ".join(error.format_message().split()).rstrip(".")
            typer.echo(f"error: {harmless(said)}; see: {error.ctx.command_path} --help", err=True)
            raise typer.Exit(2) from None


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether it is torch's, of an accelerator or of a CPU; by name, so that torch is not imported."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(error)


def _one_line(error: Exception) -> str:
    known = isinstance(error, OSError) and error.filename is not None
    said = f"{os.fsdecode(error.filename)}: {error.strerror}" if known else str(error)
    return harmless(" ".join(said.split()))


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Turn pictures into a few tokens, and train a language model that draws, edits and describes them.

Start with [bold]ddt demo[/]: it runs every step below on embedded data and writes runs/demo/report.html.

Steps: data, train-tokenizer, tokenize, pretrain, sft. Then: reconstruct, generate, edit, ask, caption, chat, serve.
Training commands take CONFIG [KEY=VALUE]... and continue where they stopped when they are run again.""",
)


def _print_versions(context: typer.Context, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from ddt_apps.machine.doctor import versions

    for name, version in {**versions(), "python": platform.python_version()}.items():
        typer.echo(f"{name} {version}")
    raise typer.Exit


@app.callback()
def ddt(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Print versions and exit.")
    ] = False,
) -> None: ...


def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; see above.")
    ] = None,
) -> None:
    """Run the whole chain on embedded data with small presets, about a quarter of an hour on two cores.

    Example: [bold]ddt demo[/], then open runs/demo/report.html

    Settings: name, scenes, held_out, seed, guidance, temperature, and those of the stages as tokenizer.batch_size=32,
    pretrain.steps=2000, sft.tasks.edit=0.6 and so on (the files tiny/*.yaml hold what they start from).
    """
    from ddt_apps.demo.settings import load_demo

    settings = load_demo(overrides or [])
    from ddt_apps.demo.run import run_demo

    run_demo(*settings)


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs and data shall go.")] = Path("."),
) -> None:
    """Look at this machine: what it has, how a run would use it, and which known traps it has set (exit code 1).

    Example: [bold]ddt doctor[/]
    """
    from ddt_apps.machine.doctor import examine, report

    findings = examine(folder)
    typer.echo(report(findings))
    raise typer.Exit(any(finding.trap for finding in findings))


def plan(
    verb: Annotated[str, typer.Argument(help="train-vae, train-tokenizer, train-renderer, pretrain, sft or tokenize.")],
    config: Config,
    overrides: Overrides = None,
    on: Annotated[
        str | None, typer.Option(help="A device, such as h100; a wrong name lists all. By default this machine.")
    ] = None,
    efficiency: Annotated[float, typer.Option(help="Share of its peak that is reached, unless it is tried.")] = 0.4,
    ids: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="V K", help="Codes and ids of an image, where data= is not there yet."),
    ] = None,
) -> None:
    """Count what a training would take: memory by part, operations, time, energy; and what would make it fit.

    Example: [bold]ddt plan pretrain llama3-8b/pretrain data=ids devices=32 strategy=fsdp2 --on h100 --ids 65536 480[/]

    A step is counted on the meta device, so that nothing large is made; on this machine a few are then taken, if they
    fit. CONFIG and KEY=VALUE are those of the verb, but that devices are those of all machines together. Latents are
    taken as cached, but by tokenize, which wants the CONFIG of a tokenizer and --on.
    """
    from ddt_apps.run.config import load_config
    from ddt_apps.train.settings import SETTINGS

    kinds = {kind: SETTINGS[kind] for kind in SETTINGS if kind not in ("adapt", "rl")} | {
        "tokenize": SETTINGS["train-tokenizer"]
    }
    if verb not in kinds:
        raise ValueError(f"verb {verb!r} must be {', '.join(kinds)}")
    settings = load_config(kinds[verb], config, overrides or [])
    from ddt_apps.machine.plan import DEVICES, tokenizing, told

    if on not in DEVICES and (on is not None or verb == "tokenize"):
        raise ValueError(f"--on {on or '(missing)'!r} must be {', '.join(DEVICES)}")
    if verb == "tokenize":
        typer.echo(tokenizing(settings, on, efficiency))
        return
    typer.echo(told(settings, on, efficiency, ids))


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG]... [KEY=VALUE]...", help="Of tokenizers and of pretraining, and settings of all of them."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench.json"),
    merge: Annotated[bool, typer.Option("--merge", help="Show files of several machines instead.")] = False,
    ids: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="V K", help="Codes and ids of an image, for a CONFIG of pretraining that comes first."),
    ] = None,
) -> None:
    """Measure this machine: pictures encoded, decoded in 1, 4 and 25 steps, tokens trained on and written, a second.

    Example: [bold]ddt bench small/tokenizer small/pretrain precision=bf16[/]

    Weights are untrained and inputs random, the code is that of the other verbs. Without CONFIG the tiny and the small
    ones are measured, in a few minutes on a CPU. A CONFIG may be a file or the folder of a run, too. On a CPU, time is
    that in which the main thread computes, and memory is what a part takes above the libraries. MFU is the share of
    what products of large matrices reach here, in the same precision. [bold]ddt bench --merge a.json b.json[/] shows
    machines side by side.
    """
    from ddt_apps.machine import bench as benches

    names = [word for word in words or [] if "=" not in word]
    if merge and not names:
        raise ValueError("--merge shows files of ddt bench, and none is named; say --merge a.json b.json")
    if merge:
        typer.echo(benches.told([benches.load(Path(name)) for name in names]))
        return
    overrides = [word for word in words or [] if "=" in word]
    try_file("--out", out, (".json",))
    found = benches.bench(names or benches.USUAL, overrides, ids)
    benches.save(found, out)
    typer.echo(benches.told([found]))
    typer.echo(f"\nwrote {out}")


PANELS = {
    "Start here": (demo, doctor, plan, bench, show.config),
    "Train": (
        train.train_vae,
        train.train_tokenizer,
        train.train_renderer,
        train.import_selftok,
        train.tokenize,
        train.pretrain,
        train.sft,
        train.adapt,
        train.rl,
        show.runs,
        data,
    ),
    "Use": (use.reconstruct, use.generate, use.edit, use.ask, use.caption, use.chat, use.serve, evaluate, export),
}
for panel, verbs in PANELS.items():
    for verb in verbs:
        if isinstance(verb, typer.Typer):
            for command in verb.registered_commands:
                command.callback = with_home(command.callback)
            app.add_typer(verb, name=verb.info.name, rich_help_panel=panel)
        else:
            app.command(verb.__name__.replace("_", "-"), rich_help_panel=panel)(with_home(verb))
