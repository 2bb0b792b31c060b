"""ddt generate: pictures of one prompt or of many, as files or as one sheet."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddt_apps.models import load_pair
from ddt_apps.use.pictures import save_picture
from ddt_apps.use.sheet import Cell, labelled_sheet
from ddt_data.shards.images import save_image
from ddt_llm.search import CaptionLikelihood, Search, search
from ddt_tokenizer.images import to_uint8
from ddt_tokenizer.precision import Precision


class Drawn(NamedTuple):
    """A picture that was drawn."""

    prompt: str
    seed: int  # that draws it again
    ids: list[int]  # finest first
    out: str  # the file that holds it


def read_prompts(file: Path) -> list[str]:
    """Read a file of prompts, one a line; blank lines are none.

    Raises:
        ValueError: If there is none, or the file is no UTF-8.
    """
    try:
        prompts = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts '{file}' is no text in UTF-8") from error
    if not prompts:
        raise ValueError(f"--prompts '{file}' holds no prompt; write one a line")
    return prompts


def generate_images(
    prompts: Sequence[str],
    model: Path,
    out: Path,
    tokenizer: Path | None = None,
    count: int = 1,
    grid: bool = False,
    seed: int = 0,
    sketch: Path | None = None,
    keep_tokens: int | None = None,
    batch_size: int = 16,
    precision: Precision = "32",
    best_of: int = 1,
    **settings: Any,
) -> Iterator[Drawn]:
    """Draw what sentences say, with a sketch from its coarsest ids on, and yield each picture when it is written.

    Args:
        prompts: Each is drawn `count` times, every picture with the next seed.
        model: Of a language model run.
        out: The file to write. Several pictures are written beside it, as fox-001.png and so on, or with `grid` into
            it as one sheet, which is there when the last one is yielded.
        tokenizer: Of the tokenizer run; None finds it beside the model.
        seed: Of the first picture.
        sketch: A picture that every drawing starts from.
        keep_tokens: Ids kept of the sketch; half of them if None.
        batch_size: Pictures drawn at once.
        precision: In which they are drawn.
        best_of: Pictures drawn for each that is kept: the one of which the model itself finds the prompt likeliest.
        settings: Of sampling: guidance_scale, temperature.

    Raises:
        ValueError: If `keep_tokens` is given without a sketch, or a setting does not fit the model.
    """
    if keep_tokens is not None and sketch is None:
        raise ValueError(f"--keep {keep_tokens} is of a sketch; say which picture, as --sketch FILE")
    if best_of > 1 and sketch is not None:
        raise ValueError(f"--best-of {best_of} draws from the prompt alone; leave out --sketch")
    lm, codec = load_pair(model, tokenizer, precision)
    if sketch is not None:
        start = codec.encode([sketch])[0]
        settings["keep_tokens"] = codec.num_tokens // 2 if keep_tokens is None else keep_tokens
    todo = [prompt for prompt in prompts for _ in range(count)]
    files = [out] if len(todo) == 1 or grid else _numbered(out, len(todo))
    cells: list[Cell] = []
    for first in range(0, len(todo), batch_size):
        some = todo[first : first + batch_size]
        sketches = None if sketch is None else [start] * len(some)
        if best_of > 1:
            answers = [
                search(
                    lm, prompt, codec, CaptionLikelihood(lm), Search(branch=best_of), number * best_of, **settings
                ).best
                for number, prompt in enumerate(some, seed + first)
            ]
        else:
            answers = lm.generate_batch(
                some, codec, output="image", seed=seed + first, sketches=sketches, batch_size=batch_size, **settings
            )
        for number, (prompt, answer) in enumerate(zip(some, answers, strict=True), first):
            picture = to_uint8(answer.images)[0]
            if grid:
                cells.append((picture, prompt if len(prompts) > 1 else f"seed {seed + number}"))
                if len(cells) == len(todo):
                    save_image(labelled_sheet(_rows(cells, len(prompts), count)), out)
            else:
                save_picture(picture, files[number])
            yield Drawn(prompt, seed + number, answer.ids[0].tolist(), str(files[0 if grid else number]))


def _numbered(out: Path, count: int) -> list[Path]:
    digits = max(3, len(str(count)))
    return [out.with_name(f"{out.stem}-{number:0{digits}}{out.suffix}") for number in range(1, count + 1)]


def _rows(cells: list[Cell], prompts: int, count: int) -> list[list[Cell]]:
    """Lay cells out: a row for each prompt if there are several pictures of each, else nearly as a square."""
    across = count if min(prompts, count) > 1 else math.ceil(math.sqrt(len(cells)))
    return [cells[i : i + across] for i in range(0, len(cells), across)]
