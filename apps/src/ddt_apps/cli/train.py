"""The verbs that train, from pictures to a tuned language model."""

from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import Config, Overrides, Tokenizer, Workers


def train_tokenizer(config: Config, overrides: Overrides = None) -> None:
    """Train encoder, codebook and decoder together: pictures to ids and back.

    Example: [bold]ddt train-tokenizer tiny/tokenizer data=data/scenes name=my-tokenizer[/]

    vae=FOLDER trains on the latents of a diffusers autoencoder, init_sd3=FOLDER starts the decoder from Stable
    Diffusion 3, init_from=RUN with training.freeze=encoder, codebook or tokenizer fine-tunes. Configurations:
    tiny/tokenizer, small/tokenizer, imagenet/ddt-480, imagenet/selftok-512.
    """
    from ddt_apps.train.tokenizer import run_train_tokenizer

    run_train_tokenizer(config, overrides or [])


def train_renderer(config: Config, overrides: Overrides = None) -> None:
    """Train a network that draws a tokenizer's ids in one step, sharper than its decoder does.

    Example: [bold]ddt train-renderer tiny/renderer data=data/scenes tokenizer=runs/my-tokenizer name=my-renderer[/]
    """
    from ddt_apps.train.renderer import run_train_renderer

    run_train_renderer(config, overrides or [])


def import_selftok(
    checkpoint: Annotated[Path, typer.Argument(help="tokenizer_512_ckpt.pth or tokenizer_1024_ckpt.pth.")],
    vae: Annotated[str, typer.Option(help="Folder or Hub id of Stable Diffusion 3's autoencoder.")],
    out: Annotated[Path, typer.Option(help="Run folder to make, such as runs/selftok.")],
) -> None:
    """Make a run of a public Selftok checkpoint, which every --tokenizer takes.

    Example: [bold]ddt import-selftok tokenizer_512_ckpt.pth --vae my-vae --out runs/selftok[/]
    """
    from ddt_tokenizer.codec import Codec

    Codec.from_selftok(checkpoint, vae).save_pretrained(out)
    typer.echo(f"{out} holds the tokenizer and the decoder of {checkpoint}")


def tokenize(
    shards: Annotated[Path, typer.Argument(help="Folder of picture shards, or of shards with latents.")],
    tokenizer: Tokenizer,
    out: Annotated[Path, typer.Option(help="Folder of id shards to make.")],
    latents: Annotated[
        bool, typer.Option("--latents", help="Keep the latents of a VAE too, so that the next tokenizer needs none.")
    ] = False,
    workers: Workers = 1,
    batch_size: Annotated[int, typer.Option(help="Pictures encoded at once.")] = 256,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make every shard of a finished --out again, and compare.")
    ] = False,
) -> None:
    """Turn picture shards into id shards, once, so that the language model trains on ids alone.

    Example: [bold]ddt tokenize data/scenes --tokenizer runs/my-tokenizer --out data/scenes-ids[/]

    Goes on with the next shard when it is run again. On several devices: torchrun --nproc-per-node 8 -m ddt_apps
    tokenize ..., each rank takes its share.
    """
    from ddt_apps.shards.tokenize import tokenize_shards, verify_shards

    if verify:
        count = verify_shards(shards=shards, tokenizer=tokenizer, out=out, batch_size=batch_size)
        typer.echo(f"{count} samples are the same when they are made again: {out}")
    else:
        tokenize_shards(shards, tokenizer, out, batch_size, latents, workers)


def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Train a language model on captions, ids and text: caption to picture and picture to caption.

    Example: [bold]ddt pretrain tiny/pretrain data=data/scenes-ids name=my-lm[/]
    """
    from ddt_apps.train.pretrain import run_pretrain

    run_pretrain(config, overrides or [])


def sft(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune on edits and questions; only the answers are trained.

    Example: [bold]ddt sft tiny/sft data=data/scenes-ids model=runs/my-lm name=my-sft[/]
    """
    from ddt_apps.train.sft import run_sft

    run_sft(config, overrides or [])
