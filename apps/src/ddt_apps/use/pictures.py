"""The verbs that use trained models: reconstruct, generate, edit, ask, caption."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddt_apps.models import load_pair, need_instructions
from ddt_apps.run.devices import pick_device
from ddt_data.shards.images import file_format, save_image
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import as_images, to_uint8

SIDE = 256  # small pictures are enlarged to about this many pixels, unsmoothed


def reconstruct_images(
    images: list[Path],
    tokenizer: Path,
    out: Path,
    renderer: Path | None = None,
    swap: Path | None = None,
    swap_range: tuple[int, int] | None = None,
    **settings: Any,
) -> None:
    """Write a sheet: each row an original, its drawing from all ids, and drawings from its 1, 2, 4, ... coarsest ids.

    Args:
        images: The pictures.
        tokenizer: A `ddt train-tokenizer` run.
        out: The file to write.
        renderer: A `ddt train-renderer` run, to draw whole sets of ids; from fewer the decoder draws.
        swap: Another picture. The 1, 2, 4, ... coarsest ids then come from it, and it ends each row, drawn and itself.
        swap_range: First id to take from the other picture and the one behind the last, for one such drawing.
        settings: Those of `DDTDecoder.decode`.

    Raises:
        ValueError: If a setting or the range does not fit the decoder.
    """
    file_format(out)
    codec = Codec.from_pretrained(tokenizer, pick_device(), renderer=renderer)
    last = codec.num_tokens
    coarsest = [2**i for i in range(last.bit_length()) if 2**i < last]
    start, stop = swap_range or (0, 0)
    if not 0 <= start <= stop <= last or (swap_range and not swap):
        raise ValueError(f"--swap-range {start} {stop} must be two of 0 to {last} in order, beside --swap")

    ids, originals = codec.encode(images), as_images(images, codec.image_size)
    whole = {} if renderer else settings  # a renderer takes none
    columns = [originals, codec.decode(ids, **whole)]
    if swap is None:
        columns += [codec.decode(ids, keep_tokens=n, **settings) for n in coarsest]
    else:
        others = codec.encode([swap]).expand_as(ids)
        for start, stop in [swap_range] if swap_range else [(last - n, last) for n in coarsest]:
            mixed = torch.cat([ids[:, :start], others[:, start:stop], ids[:, stop:]], dim=1)
            columns.append(codec.decode(mixed, **whole))
        columns += [codec.decode(others, **whole), as_images(swap, codec.image_size).expand_as(originals)]
    rows = np.concatenate([to_uint8(column) for column in columns], axis=2)
    save_picture(rows.reshape(-1, *rows.shape[2:]), out)


def generate_image(
    prompt: str,
    model: Path,
    out: Path,
    tokenizer: Path | None,
    guidance: float,
    temperature: float,
    seed: int,
    sketch: Path | None = None,
    keep_tokens: int | None = None,
) -> None:
    """Draw what a sentence says, with a sketch from its coarsest ids on; half of them if `keep_tokens` is None."""
    file_format(out)
    lm, codec = load_pair(model, tokenizer)
    settings = {"guidance_scale": guidance, "temperature": temperature, "seed": seed}
    if sketch is not None:
        settings |= {"sketch": sketch, "keep_tokens": codec.num_tokens // 2 if keep_tokens is None else keep_tokens}
    drawn = lm.generate(prompt, codec, output="image", **settings)
    save_picture(to_uint8(drawn.images)[0], out)


def edit_image(image: Path, instruction: str, model: Path, out: Path, tokenizer: Path | None, seed: int) -> None:
    """Change a picture as a sentence says."""
    file_format(out)
    lm, codec = load_pair(model, tokenizer)
    need_instructions(lm, model)
    drawn = lm.generate([image, instruction], codec, output="image", seed=seed, temperature=0.0)
    save_picture(to_uint8(drawn.images)[0], out)


def answer_question(image: Path, question: str, model: Path, tokenizer: Path | None) -> str:
    """Answer a question about a picture."""
    lm, codec = load_pair(model, tokenizer)
    need_instructions(lm, model)
    return lm.generate([image, question], codec, output="text", temperature=0.0).text


def caption_image(image: Path, model: Path, tokenizer: Path | None) -> str:
    """Describe a picture in a sentence."""
    lm, codec = load_pair(model, tokenizer)
    prompt = image if lm.template == "caption" else [image, "describe the picture"]
    return lm.generate(prompt, codec, output="text", temperature=0.0).text


def save_picture(picture: np.ndarray, out: Path) -> None:
    """Write a uint8 picture [H, W, 3]; small ones are enlarged by a whole factor."""
    factor = max(1, SIDE // picture.shape[0])
    enlarged = Image.fromarray(picture).resize((picture.shape[1] * factor, picture.shape[0] * factor), Image.NEAREST)
    save_image(enlarged, out)
