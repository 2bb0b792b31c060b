"""The `ddt` command: one verb per step from pictures to a language model that draws, edits and describes them.

A verb imports its module when it is called, so help is immediate.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddt_apps.cli.data import data
from ddt_apps.cli.options import Out, Seed, Workers

Config = Annotated[str, typer.Argument(help="A .yaml file, or the name of a configuration that ships with ddt.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of CONFIG.")
]
Tokenizer = Annotated[Path, typer.Option(help="Folder of a trained tokenizer run, such as runs/demo/tokenizer.")]
AnyTokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="Tokenizer run; by default the matching one beside the model.")
]
Model = Annotated[Path, typer.Option(help="Folder of a trained language model run, such as runs/demo/sft.")]
Image = Annotated[Path, typer.Argument(help="A picture: jpg, png or webp.")]


class Verbs(TyperGroup):
    """Turns what a user can mend into one line and exit code 2; DDT_TRACEBACK=1 shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours show what takes time
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("\nstopped; run the same command again to continue where it was", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError) as error:
            if os.environ.get("DDT_TRACEBACK"):
                raise
            typer.echo(f"error: {_one_line(error)}", err=True)
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
app.add_typer(data, name="data", rich_help_panel="Train")
evaluate = typer.Typer(
    no_args_is_help=True,
    help="""Measure what a model can do, each figure beside its ceiling and chance.

MODEL is the folder of a run, or file.py:function for a model of your own behind an adapter. Writes scores.json and
index.html to MODEL/evaluation, or where --out says.""",
)
app.add_typer(evaluate, name="evaluate", rich_help_panel="Use")


@app.command(rich_help_panel="Start here")
def demo(overrides: Overrides = None) -> None:
    """Run the whole chain on embedded data with small presets, about twelve minutes on two cores.

    Example: [bold]ddt demo[/], then open runs/demo/report.html

    Settings: name, scenes, held_out, seed, guidance, temperature, and those of the stages as tokenizer.batch_size=32,
    pretrain.optimizer.steps=2000, sft.tasks.edit=0.6 and so on (the files tiny/*.yaml hold what they start from).
    """
    from ddt_apps.demo.run import run_demo

    run_demo(overrides or [])


@app.command("train-tokenizer", rich_help_panel="Train")
def train_tokenizer(config: Config, overrides: Overrides = None) -> None:
    """Train encoder, codebook and decoder together: pictures to ids and back.

    Example: [bold]ddt train-tokenizer tiny/tokenizer data=data/scenes name=my-tokenizer[/]

    vae=FOLDER trains on the latents of a diffusers autoencoder, init_sd3=FOLDER starts the decoder from Stable
    Diffusion 3, init_from=RUN with training.freeze=encoder, codebook or tokenizer fine-tunes. Configurations:
    tiny/tokenizer, small/tokenizer, imagenet/ddt-480, imagenet/selftok-512.
    """
    from ddt_apps.train.tokenizer import run_train_tokenizer

    run_train_tokenizer(config, overrides or [])


@app.command("train-renderer", rich_help_panel="Train")
def train_renderer(config: Config, overrides: Overrides = None) -> None:
    """Train a network that draws a tokenizer's ids in one step, sharper than its decoder does.

    Example: [bold]ddt train-renderer tiny/renderer data=data/scenes tokenizer=runs/my-tokenizer name=my-renderer[/]
    """
    from ddt_apps.train.renderer import run_train_renderer

    run_train_renderer(config, overrides or [])


@app.command("import-selftok", rich_help_panel="Train")
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


@app.command(rich_help_panel="Train")
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


@app.command(rich_help_panel="Train")
def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Train a language model on captions, ids and text: caption to picture and picture to caption.

    Example: [bold]ddt pretrain tiny/pretrain data=data/scenes-ids name=my-lm[/]
    """
    from ddt_apps.train.pretrain import run_pretrain

    run_pretrain(config, overrides or [])


@app.command(rich_help_panel="Train")
def sft(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune on edits and questions; only the answers are trained.

    Example: [bold]ddt sft tiny/sft data=data/scenes-ids model=runs/my-lm name=my-sft[/]
    """
    from ddt_apps.train.sft import run_sft

    run_sft(config, overrides or [])


@app.command(rich_help_panel="Use")
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    tokenizer: Tokenizer,
    out: Out,
    renderer: Annotated[
        Path | None, typer.Option(help="Folder of a trained renderer run, to draw all ids in its place.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; by default 1 if the decoder was trained for that, else 25.")
    ] = None,
) -> None:
    """Draw pictures from their ids alone, beside the originals and from the first 1, 2, 4, ... ids.

    Example: [bold]ddt reconstruct fox.png --tokenizer runs/demo/tokenizer --out fox-again.png[/]
    """
    from ddt_apps.use.pictures import reconstruct_images

    reconstruct_images(images=images, tokenizer=tokenizer, out=out, num_steps=steps, renderer=renderer)


@app.command(rich_help_panel="Use")
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Model,
    out: Out,
    guidance: Annotated[float, typer.Option(help="Above 1: closer to the prompt, less varied.")] = 1.5,
    temperature: Annotated[float, typer.Option(help="Below 1: safer, less varied.")] = 0.7,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
    sketch: Annotated[Path | None, typer.Option(help="A picture to start from: its coarsest ids are kept.")] = None,
    keep: Annotated[int | None, typer.Option(help="Ids kept of the sketch; by default half.")] = None,
) -> None:
    """Draw what a sentence says.

    Example: [bold]ddt generate "a red fox left of a bell" --model runs/demo/pretrain --out fox.png[/]
    """
    from ddt_apps.use.pictures import generate_image

    generate_image(prompt, model, out, tokenizer, guidance, temperature, seed, sketch, keep)


@app.command(rich_help_panel="Use")
def edit(
    image: Image,
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    model: Model,
    out: Out,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
) -> None:
    """Change a picture as a sentence says.

    Example: [bold]ddt edit fox.png "make the fox blue" --model runs/demo/sft --out blue.png[/]
    """
    from ddt_apps.use.pictures import edit_image

    edit_image(image=image, instruction=instruction, model=model, out=out, tokenizer=tokenizer, seed=seed)


@app.command(rich_help_panel="Use")
def ask(
    image: Image,
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: Model,
    tokenizer: AnyTokenizer = None,
) -> None:
    """Answer a question about a picture.

    Example: [bold]ddt ask fox.png "what colour is the fox?" --model runs/demo/sft[/]
    """
    from ddt_apps.use.pictures import answer_question

    typer.echo(answer_question(image=image, question=question, model=model, tokenizer=tokenizer))


@app.command(rich_help_panel="Use")
def caption(image: Image, model: Model, tokenizer: AnyTokenizer = None) -> None:
    """Describe a picture in a sentence.

    Example: [bold]ddt caption fox.png --model runs/demo/pretrain[/]
    """
    from ddt_apps.use.pictures import caption_image

    typer.echo(caption_image(image=image, model=model, tokenizer=tokenizer))


@app.command(rich_help_panel="Use")
def chat(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pictures that the model draws.")] = Path("chat"),
    guidance: Annotated[float, typer.Option(help="Above 1: pictures closer to what was said.")] = 1.5,
    temperature: Annotated[float, typer.Option(help="Of pictures.")] = 0.7,
    text_temperature: Annotated[float, typer.Option(help="Of text; 0 writes the likeliest.")] = 0.0,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
) -> None:
    """Talk: ask for pictures, show some by their path, ask about them, have them changed.

    Example: [bold]ddt chat --model runs/demo/sft[/], then: a red fox on a black background
    """
    from ddt_apps.use.chat import run_chat

    run_chat(model, out, tokenizer, guidance, temperature, text_temperature, seed)


Source = Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a run, or file.py:function.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Where to write; by default into the run.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; see above.")]


@evaluate.command("scenes")
def evaluate_scenes(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Draw SceneEval's 540 prompts and judge the pictures strictly.

    Example: [bold]ddt evaluate scenes runs/demo/pretrain level=tiny[/]

    Settings: level (tiny, standard, hard), pictures (for each prompt), seed, guidance, temperature, judge,
    second_judge, backgrounds (folder of pictures behind the real scenes), clip (folder of a CLIP model).
    """
    from ddt_apps.evaluation import scenes, verbs

    verbs.run_evaluation(scenes, model, out, settings or [])


@evaluate.command("reconstruction")
def evaluate_reconstruction(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Turn pictures into ids and back: PSNR, SSIM, bits, prefixes, and more where networks are installed.

    Example: [bold]ddt evaluate reconstruction runs/demo/tokenizer level=tiny[/]

    Settings: data (folder of picture shards; else held-out scenes), level, count, seed, inception (TorchScript file,
    for rFID), lpips (alex, vgg or squeeze, where torchvision has the weights).
    """
    from ddt_apps.evaluation import reconstruction, verbs

    verbs.run_evaluation(reconstruction, model, out, settings or [])


@evaluate.command("edits")
def evaluate_edits(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Edit held-out scenes whose exact result is known.

    Example: [bold]ddt evaluate edits runs/demo/sft level=tiny[/]

    Settings: level, count, seed, judge.
    """
    from ddt_apps.evaluation import edits, verbs

    verbs.run_evaluation(edits, model, out, settings or [])


@evaluate.command("answers")
def evaluate_answers(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Ask questions about held-out scenes; beside the score what one gets without looking.

    Example: [bold]ddt evaluate answers runs/demo/sft level=tiny[/]

    Settings: level, count, seed.
    """
    from ddt_apps.evaluation import answers, verbs

    verbs.run_evaluation(answers, model, out, settings or [])


@evaluate.command("captions")
def evaluate_captions(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Describe held-out scenes and parse what was said.

    Example: [bold]ddt evaluate captions runs/demo/pretrain level=tiny[/]

    Settings: level, count, seed.
    """
    from ddt_apps.evaluation import captions, verbs

    verbs.run_evaluation(captions, model, out, settings or [])


@evaluate.command("language")
def evaluate_language(model: Source, settings: Settings = None, out: Folder = None) -> None:
    """Foretell the ids of held-out pictures from their captions, in bits; beside it what another caption gives.

    Example: [bold]ddt evaluate language runs/demo/pretrain level=tiny[/]

    Settings: level, count, seed.
    """
    from ddt_apps.evaluation import language, verbs

    verbs.run_evaluation(language, model, out, settings or [])


@evaluate.command("table")
def evaluate_table(
    scores: Annotated[list[Path], typer.Argument(help="Folders that hold scores.json, of one benchmark.")],
) -> None:
    """Put scores side by side; warns where they were not measured alike.

    Example: [bold]ddt evaluate table runs/a/evaluation/scenes runs/b/evaluation/scenes[/]
    """
    from ddt_apps.evaluation.verbs import print_comparison

    print_comparison(scores)
