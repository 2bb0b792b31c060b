"""`ddt export ...`: models in the forms that other programs read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ddt_apps.cli.options import gguf_to_write, out_folder

export = typer.Typer(
    name="export", no_args_is_help=True, help="Write a model as other programs read it, or that of a stopped run."
)


@export.command("run")
def export_run(run: Annotated[Path, typer.Argument(help="Folder of a run that is not finished.")]) -> None:
    """Write the model of a run that was stopped, from its last checkpoint; the run can go on afterwards.

    Example: [bold]ddt export run runs/my-lm[/]
    """
    from ddt_apps.train.export import export_run as write

    write(run)


@export.command("hub")
def export_hub(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run: tokenizer, renderer or language model.")],
    out: Annotated[Path, out_folder("Folder for the model and its README.md.")],
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, by its name on the Hub, as in cc-by-4.0; see the data's.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder there; without, nothing is sent.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
) -> None:
    """Write a folder for the Hugging Face Hub: the model, and a card with what is known of it.

    Example: [bold]ddt export hub runs/my-lm --out my-lm-hub --licence cc-by-4.0 --push me/my-lm[/]

    The card shows sizes, bits an image, the data with its licences, and every score of: ddt evaluate, with the id of
    its protocol. Read it before you push. What is there is loaded by its id: from_pretrained("me/my-lm").
    """
    from ddt_apps.export.hub import export_hub as write

    typer.echo(write(run, out, licence, push, private))


@export.command("diffusers")
def export_diffusers(
    run: Annotated[Path, typer.Argument(help="Folder of a run of: ddt pretrain, ddt sft.")],
    out: Annotated[Path, out_folder("Folder of the pipeline.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer run; by default the one of the right fingerprint beside the model.")
    ] = None,
) -> None:
    """Write a pipeline of diffusers: text to images, and by a model of ddt sft images to images.

    Example: [bold]ddt export diffusers runs/my-lm --out my-pipeline[/]

    Then, where ddt-apps is installed: DiffusionPipeline.from_pretrained("my-pipeline", trust_remote_code=True), whose
    code is one import; or DDTPipeline.from_pretrained("my-pipeline") of ddt_apps.export.diffusers, without any.
    """
    from ddt_apps.export.diffusers import export_diffusers as write

    typer.echo(write(run, out, tokenizer))


@export.command("gguf")
def export_gguf(
    run: Annotated[Path, typer.Argument(help="Folder of a run of: ddt pretrain, ddt sft.")],
    out: Annotated[
        Path, typer.Option(help="File to write; the grammar goes beside it: my-lm.gbnf.", callback=gguf_to_write)
    ],
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_0"],
        typer.Option(help="Of the matrices: floats, or blocks of 32 weights in 8 or 4 bits."),
    ] = "f16",
) -> None:
    """Write a language model for llama.cpp and what is built on it: text, captions, answers, and ids of pictures.

    Example: [bold]ddt export gguf runs/my-lm --out my-lm.gguf --kind q8_0[/]

    The backbone has to be a LLaMA, as those of the tiny and small configurations. The grammar makes the sampler write
    one whole image; ids are drawn by the codec, or by: ddt export onnx. Needs the extra export.
    """
    from ddt_apps.export.gguf import export_gguf as write

    typer.echo(write(run, out, kind))


@export.command("onnx")
def export_onnx(
    run: Annotated[Path, typer.Argument(help="Folder of a run of: ddt train-tokenizer, ddt train-renderer.")],
    out: Annotated[Path, out_folder("Folder for encoder.onnx and decoder.onnx (of a renderer, renderer.onnx).")],
    vae: Annotated[str | None, typer.Option(help="Where the VAE of its latents lies, if not where it did.")] = None,
) -> None:
    """Write pictures -> ids and ids -> pictures for onnxruntime, without torch, in batches of any size.

    Example: [bold]ddt export onnx runs/my-tokenizer --out my-tokenizer-onnx[/]

    Drawing is one step: that of a renderer, or of a decoder that was trained for one. Both files are run and compared
    with the model. What goes in and comes out: docs/exports.md. Needs the extra export.
    """
    from ddt_apps.export.onnx import export_onnx as write

    typer.echo(write(run, out, vae))
