"""The verbs that train, from pictures to a tuned language model."""

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import (
    SHIPPED,
    BatchSize,
    Config,
    Device,
    Overrides,
    Precision,
    Status,
    Tokenizer,
    Workers,
    out_folder,
    paths,
)
from ddt_apps.run.ranks import started
from ddt_apps.run.starting import start_ranks


def _print_keys(context: typer.Context, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from ddt_apps.run.keys import keys_of, table
    from ddt_apps.train.settings import SETTINGS

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize  # a line a key for grep
    typer.echo(table(keys_of(SETTINGS[context.command.name]), width))
    raise typer.Exit


Keys = Annotated[
    bool,
    typer.Option("--keys", is_eager=True, callback=_print_keys, help="List every setting, its default and meaning."),
]


PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the configuration that would be trained, in full, and stop.")
]


def _train(verb: str, config: str, overrides: list[str] | None, print_config: bool) -> None:
    """Train as the module of the verb does, in as many processes as the settings want.

    The settings are built before what trains is loaded: a wrong key is answered at once.
    """
    from ddt_apps.run.config import load_config
    from ddt_apps.train.settings import SETTINGS

    if print_config:
        from ddt_apps.run.annotated import in_full

        typer.echo(in_full(SETTINGS[verb], config, overrides or []), nl=False)
        return
    settings = load_config(SETTINGS[verb], config, overrides or [])
    here = 1 if settings.devices == "auto" else settings.devices
    if (here > 1 or settings.sharded) and not started():
        start_ranks(here)
        return
    folder = import_module(f"ddt_apps.train.{verb.removeprefix('train-')}").train(settings)
    from ddt_apps.run.telling import next_command

    typer.echo(f"next: {next_command(settings, folder)}")


def train_vae(
    config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False
) -> None:
    """Train a small autoencoder, in whose latents a tokenizer then works: quicker than on pixels, and without seams.

    Example: [bold]ddt train-vae small/vae data=data/scenes name=vae[/]

    Writes runs/NAME/vae, a folder of diffusers (AutoencoderTiny), for vae= of ddt train-tokenizer and ddt data latents.
    """
    _train("train-vae", config, overrides, print_config)


def train_tokenizer(
    config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False
) -> None:
    """Train encoder, codebook and decoder together: pictures to ids and back.

    Example: [bold]ddt train-tokenizer tiny/tokenizer data=data/scenes name=my-tokenizer[/]

    vae=FOLDER trains on the latents of a diffusers autoencoder, init_sd3=FOLDER starts the decoder from Stable
    Diffusion 3, init_from=RUN with training.freeze=encoder, codebook or tokenizer fine-tunes. Configurations:
    tiny/tokenizer, small/tokenizer, small-long/tokenizer, imagenet/ddt-480, imagenet/selftok-512; beside the small ones
    small/spatial and small-long/spatial, with an id for each patch, and small/drawings, on emoji and scenes.
    """
    _train("train-tokenizer", config, overrides, print_config)


def train_renderer(
    config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False
) -> None:
    """Train a network that draws a tokenizer's ids in one step, sharper than its decoder does.

    Example: [bold]ddt train-renderer tiny/renderer data=data/scenes tokenizer=runs/my-tokenizer name=my-renderer[/]
    """
    _train("train-renderer", config, overrides, print_config)


def import_selftok(
    checkpoint: Annotated[Path, typer.Argument(help="tokenizer_512_ckpt.pth or tokenizer_1024_ckpt.pth.")],
    vae: Annotated[str, typer.Option(help="Folder or Hub id of Stable Diffusion 3's autoencoder.", callback=paths)],
    out: Annotated[Path, out_folder("Run folder to make, such as runs/selftok.")],
) -> None:
    """Make a run of a public Selftok checkpoint, which every --tokenizer takes.

    Example: [bold]ddt import-selftok tokenizer_512_ckpt.pth --vae my-vae --out runs/selftok[/]
    """
    from ddt_tokenizer.codec import Codec

    Codec.from_selftok(checkpoint, vae).save_pretrained(out)
    typer.echo(f"{out} holds the tokenizer and the decoder of {checkpoint}")


def tokenize(
    shards: Annotated[
        str,
        typer.Argument(help="Folder of picture shards, or of shards with latents; or a URL of one.", callback=paths),
    ],
    out: Annotated[Path, out_folder("Folder of id shards to make.")],
    tokenizer: Tokenizer = SHIPPED,
    latents: Annotated[
        bool, typer.Option("--latents", help="Keep the latents of a VAE too, so that the next tokenizer needs none.")
    ] = False,
    workers: Workers = 1,
    batch_size: BatchSize = 32,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make every shard of a finished --out again, and compare.")
    ] = False,
    status: Status = False,
    precision: Precision = "32",
    device: Device = "auto",
) -> None:
    """Turn picture shards into id shards, once, so that the language model trains on ids alone.

    Example: [bold]ddt tokenize data/scenes --tokenizer runs/my-tokenizer --out data/scenes-ids[/]

    Goes on with the next shard when it is run again. The same line in other shells, on machines that see --out, in
    an array of Slurm or by torchrun (for the devices of one machine) helps: they share the shards, any may be killed,
    others may join. With --precision bf16 up to 1 % of the ids are others: manifest.json says so, and folders of both
    precisions do not mix. Long work in 32 says at its start what bf16 would save.
    """
    if status:
        from ddt_apps.shards.jobs import how_far

        typer.echo(how_far("tokenize", shards, out))
        return
    from ddt_apps.shards.tokenize import tokenize_shards, verify_shards

    if verify:
        count = verify_shards(shards=shards, tokenizer=tokenizer, out=out, batch_size=batch_size)
        typer.echo(f"{count} samples are the same when they are made again: {out}")
    else:
        manifest = tokenize_shards(shards, tokenizer, out, batch_size, latents, workers, precision)
        rejected = f", {len(manifest.skipped)} were rejected (see its manifest.json)" if manifest.skipped else ""
        said = f"{out} holds {manifest.samples} samples as ids{rejected}; next: ddt pretrain tiny/pretrain data={out}"
        typer.echo(said)


def pretrain(
    config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False
) -> None:
    """Train a language model on captions, ids and text: caption to picture and picture to caption.

    Example: [bold]ddt pretrain tiny/pretrain data=data/scenes-ids name=my-lm[/]
    """
    _train("pretrain", config, overrides, print_config)


def sft(config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False) -> None:
    """Fine-tune on edits and questions; only the answers are trained.

    Example: [bold]ddt sft tiny/sft data=data/scenes-ids model=runs/my-lm name=my-sft[/]
    """
    _train("sft", config, overrides, print_config)


def adapt(config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False) -> None:
    """Adapt a language model to write images in a few steps, many ids at once, in place of id by id.

    Example: [bold]ddt adapt tiny/adapt data=data/scenes-ids model=runs/my-lm name=my-parallel-lm[/]

    It keeps what it could, and text is written in order. Then ddt generate --denoise 8 draws in eight passes, and ddt
    evaluate scenes RUN denoising.steps=8 measures it. denoise.blocks=[4,4,8] says which ids are written together,
    coarse ones first; denoise.text_block=8 makes texts denoised as well.
    """
    _train("adapt", config, overrides, print_config)


def rl(config: Config, overrides: Overrides = None, keys: Keys = False, print_config: PrintConfig = False) -> None:
    """Reinforce what a language model draws well, as a judge sees it (GRPO).

    Example: [bold]ddt rl tiny/rl model=runs/my-lm name=my-better-lm[/]

    Draws several pictures of each prompt and makes those likelier that are better than the others. rewards={scenes: 1}
    is SceneEval's judge on prompts that it does not score; rewards={my.py:function: 1} your own: images, ids and
    prompts in, a number for each out. The second judge is logged beside it as referee and never trained on.
    """
    _train("rl", config, overrides, print_config)
