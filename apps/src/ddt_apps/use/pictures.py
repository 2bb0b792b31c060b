"""The verbs that use trained models: reconstruct, generate, edit, ask, caption."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddt_apps.models import load_pair, need_instructions
from ddt_apps.run.atomic import writing
from ddt_apps.run.devices import pick_device
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import as_images, to_uint8

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # Pillow's names of the formats
SIDE = 256  # small pictures are enlarged to about this many pixels, unsmoothed


def reconstruct_images(
    images: list[Path], tokenizer: Path, out: Path, num_steps: int | None = None, renderer: Path | None = None
) -> None:
    """Write a sheet: each row an original, its reconstruction, and drawings from its 1, 2, 4, ... coarsest ids.

    A renderer (a `ddt train-renderer` run) draws the reconstruction; fewer ids are always drawn by the decoder.
    """
    _format(out)
    codec = Codec.from_pretrained(tokenizer, pick_device(), num_steps, renderer)
    ids = codec.encode(images)
    kept = [2**i for i in range(codec.num_tokens.bit_length()) if 2**i < codec.num_tokens]
    originals = as_images(images, codec.image_size)
    columns = [originals, codec.decode(ids), *(codec.decode(ids, keep_tokens=n) for n in kept)]
    save_picture(
        np.concatenate([to_uint8(column) for column in columns], axis=2).reshape(
            -1, len(columns) * codec.image_size, 3
        ),
        out,
    )


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
    _format(out)
    lm, codec = load_pair(model, tokenizer)
    settings = {"guidance_scale": guidance, "temperature": temperature, "seed": seed}
    if sketch is not None:
        settings |= {"sketch": sketch, "keep_tokens": codec.num_tokens // 2 if keep_tokens is None else keep_tokens}
    drawn = lm.generate(prompt, codec, output="image", **settings)
    save_picture(to_uint8(drawn.images)[0], out)


def edit_image(image: Path, instruction: str, model: Path, out: Path, tokenizer: Path | None, seed: int) -> None:
    """Change a picture as a sentence says."""
    _format(out)
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
    with writing(out) as file:
        enlarged.save(file, format=_format(out))


def _format(out: Path) -> str:
    """Pillow's name of the format of a file; called before any work is done."""
    if out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out '{out}' must end in {', '.join(PICTURES)}")
    return PICTURES[out.suffix.lower()]
