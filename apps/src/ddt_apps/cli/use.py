"""The verbs that use what was trained."""

from pathlib import Path
from typing import Annotated

import typer

from ddt_apps.cli.options import (
    SHIPPED,
    Device,
    Json,
    Out,
    Precision,
    Seed,
    Tokenizer,
    at_least,
    finite,
    out_folder,
    say_json,
)
from ddt_apps.run.terminal import harmless

AnyTokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="Tokenizer run; by default the matching one beside the model.")
]
Model = Annotated[Path, typer.Option(help="Folder of a trained language model run, such as runs/demo/sft.")]
Image = Annotated[Path, typer.Argument(help="A picture: jpg, png or webp.")]


def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    out: Out,
    tokenizer: Tokenizer = SHIPPED,
    renderer: Annotated[
        Path | None, typer.Option(help="Folder of a trained renderer run, to draw in its place.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Denoising steps; by default 1 if the decoder was trained for that, else 25.", callback=at_least(1)
        ),
    ] = None,
    sampler: Annotated[str, typer.Option(help="How steps are taken, such as heun; a wrong name lists all.")] = "euler",
    guidance: Annotated[float, typer.Option(help="Above 1: exaggerates what the ids say.", callback=finite)] = 1.0,
    all_ids: Annotated[
        bool, typer.Option("--all-ids", help="Show all ids at every one of many steps, not those of its noise alone.")
    ] = False,
    swap: Annotated[
        Path | None, typer.Option(help="Another picture, from which the first 1, 2, 4, ... ids come.")
    ] = None,
    swap_range: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="START STOP", help="Only ids START to STOP - 1 come from it; 0 is the finest."),
    ] = None,
    precision: Precision = "32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw pictures from their ids alone, beside the originals and from the first 1, 2, 4, ... ids.

    Example: [bold]ddt reconstruct fox.png --out fox-again.png[/]

    With --swap bell.png the fox is drawn with the first 1, 2, 4, ... ids of the bell, or those of --swap-range 8 12.
    """
    from ddt_apps.use.inline import SHEET, show
    from ddt_apps.use.pictures import reconstruct_images

    settings = {"num_steps": steps, "sampler": sampler, "guidance_scale": guidance, "all_tokens": all_ids}
    found = reconstruct_images(images, tokenizer, out, renderer, swap, swap_range, precision, **settings)
    for picture in found if json else ():
        say_json(picture | {"out": str(out)})
    if not json:
        show(out, SHEET)


def generate(
    model: Model,
    out: Out,
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In place of PROMPT: a file of prompts, one a line.")
    ] = None,
    count: Annotated[
        int,
        typer.Option("--count", "-n", help="Pictures of each prompt, each with the next seed.", callback=at_least(1)),
    ] = 1,
    grid: Annotated[bool, typer.Option("--grid", help="All pictures on one sheet, with words under each.")] = False,
    guidance: Annotated[float, typer.Option(help="Above 1: closer to the prompt, less varied.", callback=finite)] = 1.5,
    temperature: Annotated[float, typer.Option(help="Below 1: safer, less varied.", callback=at_least(0))] = 0.7,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
    sketch: Annotated[Path | None, typer.Option(help="A picture to start from: its coarsest ids are kept.")] = None,
    keep: Annotated[
        int | None, typer.Option(help="Ids kept of the sketch; by default half.", callback=at_least(0))
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures drawn at once.", callback=at_least(1))] = 16,
    best_of: Annotated[
        int,
        typer.Option(
            help="Draw so many and keep the one of which the model finds the prompt likeliest.", callback=at_least(1)
        ),
    ] = 1,
    denoise: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Write ids many at once, in so many passes, with a model of ddt adapt.",
            callback=at_least(1),
        ),
    ] = None,
    sure: Annotated[
        float | None,
        typer.Option(help="With --denoise: take ids surer than this at once, in fewer passes.", callback=finite),
    ] = None,
    precision: Precision = "32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw what a sentence says, or each line of a file.

    Example: [bold]ddt generate "a red fox left of a bell" --model runs/demo/pretrain --out fox.png[/]

    With -n 16 it writes fox-001.png to fox-016.png, with --grid too one sheet. The next picture has the next seed,
    which draws it again; --json tells it, with the file and the ids.
    """
    from ddt_apps.use.drawing import generate_images, read_prompts
    from ddt_apps.use.inline import COLUMNS, SHEET, show

    if (prompt is None) == (prompts is None):
        raise ValueError("say what to draw: either a PROMPT or --prompts FILE")
    wanted = [prompt] if prompts is None else read_prompts(prompts)
    if sure is not None and denoise is None:
        raise ValueError(f"--sure {sure} is of denoising; say in how many steps at the most, as --denoise 16")
    how = {"guidance_scale": guidance, "temperature": temperature}
    if denoise is not None:
        from ddt_llm import Denoising

        how["denoising"] = Denoising(steps=denoise, threshold=sure)
    drawn = generate_images(
        wanted, model, out, tokenizer, count, grid, seed, sketch, keep, batch_size, precision, best_of, **how
    )
    for picture in drawn:
        if json:
            say_json(picture._asdict())
    if not json and (grid or count * len(wanted) == 1):
        show(out, SHEET if grid else COLUMNS)


def edit(
    image: Image,
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    model: Model,
    out: Out,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
    precision: Precision = "32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Change a picture as a sentence says.

    Example: [bold]ddt edit fox.png "make the fox blue" --model runs/demo/sft --out blue.png[/]
    """
    from ddt_apps.use.inline import show
    from ddt_apps.use.pictures import edit_image

    ids = edit_image(image, instruction, model, out, tokenizer, seed, precision)
    if json:
        say_json({"image": str(image), "instruction": instruction, "seed": seed, "ids": ids, "out": str(out)})
    else:
        show(out)


def ask(
    image: Image,
    question: Annotated[str, typer.Argument(help="A question about it.")],
    model: Model,
    tokenizer: AnyTokenizer = None,
    precision: Precision = "32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Answer a question about a picture.

    Example: [bold]ddt ask fox.png "what colour is the fox?" --model runs/demo/sft[/]
    """
    from ddt_apps.use.pictures import answer_question

    answer = answer_question(image, question, model, tokenizer, precision)
    if json:
        say_json({"image": str(image), "question": question, "answer": answer})
    else:
        typer.echo(harmless(answer))


def caption(
    image: Image,
    model: Model,
    tokenizer: AnyTokenizer = None,
    precision: Precision = "32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Describe a picture in a sentence.

    Example: [bold]ddt caption fox.png --model runs/demo/pretrain[/]
    """
    from ddt_apps.use.pictures import caption_image

    said = caption_image(image, model, tokenizer, precision)
    if json:
        say_json({"image": str(image), "caption": said})
    else:
        typer.echo(harmless(said))


def chat(
    model: Model,
    out: Annotated[Path, out_folder("Folder for the pictures that the model draws.")] = Path("chat"),
    guidance: Annotated[float, typer.Option(help="Above 1: pictures closer to what was said.", callback=finite)] = 1.5,
    temperature: Annotated[float, typer.Option(help="Of pictures.", callback=at_least(0))] = 0.7,
    text_temperature: Annotated[
        float, typer.Option(help="Of text; 0 writes the likeliest.", callback=at_least(0))
    ] = 0.0,
    seed: Seed = 0,
    tokenizer: AnyTokenizer = None,
    precision: Precision = "32",
    device: Device = "auto",
) -> None:
    """Talk: ask for pictures, show some by their path, ask about them, have them changed.

    Example: [bold]ddt chat --model runs/demo/sft[/], then: a red fox on a black background
    """
    from ddt_apps.use.chat import run_chat

    run_chat(model, out, tokenizer, guidance, temperature, text_temperature, seed, precision)


def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a trained language model run, such as runs/demo/sft.")],
    tokenizer: AnyTokenizer = None,
    renderer: Annotated[
        Path | None, typer.Option(help="Folder of a trained renderer run, to draw in the decoder's place.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", callback=at_least(0))] = 8000,
    slots: Annotated[int, typer.Option(help="Answers written at once.", callback=at_least(1))] = 8,
    queue: Annotated[
        int, typer.Option(help="Answers that may wait for a slot; more are sent away (429).", callback=at_least(0))
    ] = 64,
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send; better set DDT_API_KEY.", envvar="DDT_API_KEY")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web page that may call it, as https://example.org.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
    precision: Precision = "32",
    device: Device = "auto",
) -> None:
    """Serve a model over HTTP: a page to draw, edit and chat on, and OpenAI's API: pictures, edits, chat, ids.

    Example: [bold]ddt serve runs/demo/sft[/], then open http://127.0.0.1:8000

    With the openai package: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-").images.generate(prompt="a fox").
    POST /v1/images/generations (stream=true with partial_images), /v1/images/edits, /v1/chat/completions, /v1/tokenize,
    /v1/detokenize; GET /v1/models, /health, /metrics. It needs the extra serve: pip install "./apps\\[serve]".
    """
    try:
        from ddt_apps.serve import server
    except ModuleNotFoundError as error:
        raise ValueError(f"ddt serve needs {error.name}: pip install './apps[serve]'") from error
    server.serve(model, tokenizer, renderer, host, port, slots, queue, api_key, cors or [], log_prompts, precision)
