"""The verbs that use trained models on a picture: reconstruct, edit, ask, caption."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddt_apps.models import load_pair, need_instructions
from ddt_apps.run.devices import pick_device_for
from ddt_apps.use.sheet import labelled_sheet
from ddt_data.shards.images import save_image
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import as_images, psnr, to_uint8
from ddt_tokenizer.precision import Precision

SIDE = 256  # small pictures are enlarged to about this many pixels, unsmoothed


def reconstruct_images(
    images: list[Path],
    tokenizer: Path,
    out: Path,
    renderer: Path | None = None,
    swap: Path | None = None,
    swap_range: tuple[int, int] | None = None,
    precision: Precision = "32",
    **settings: Any,
) -> list[dict[str, Any]]:
    """Write a sheet: each row an original, its drawing from all ids, and drawings from its 1, 2, 4, ... coarsest ids.

    Under each stands the file's name, or how many ids it is drawn from, in how many steps, and its PSNR.

    Args:
        images: The pictures.
        tokenizer: A `ddt train-tokenizer` run.
        out: The file to write.
        renderer: A `ddt train-renderer` run, to draw whole sets of ids, and fewer if it was taught to; else the decoder
            draws those.
        swap: Another picture. The 1, 2, 4, ... coarsest ids then come from it, and it ends each row, drawn and itself.
        swap_range: First id to take from the other picture and the one behind the last, for one such drawing.
        precision: In which pictures are read and drawn.
        settings: Those of `DDTDecoder.decode`.

    Returns:
        For each picture its file (`image`), its `ids`, finest first, and the `psnr` of its drawing from all of them.

    Raises:
        ValueError: If a setting or the range does not fit the decoder.
    """
    device = pick_device_for(precision)
    codec = Codec.from_pretrained(tokenizer, device, renderer=renderer, precision=precision)
    last = codec.num_tokens
    coarsest = [2**i for i in range(last.bit_length()) if 2**i < last]
    start, stop = swap_range or (0, 0)
    if not 0 <= start <= stop <= last or (swap_range and not swap):
        raise ValueError(f"--swap-range {start} {stop} must be two of 0 to {last} in order, beside --swap")

    ids, originals = codec.encode(images), as_images(images, codec.image_size)
    whole = {} if renderer else settings  # a renderer takes none
    steps = _steps(settings.get("num_steps") or codec.num_steps) + ", all shown" * bool(settings.get("all_tokens"))
    how = "renderer" if renderer else steps
    again = codec.decode(ids, **whole)
    columns = [
        (originals, [image.name for image in images]),
        _against(originals, again, f"{last} ids, {how}"),
    ]
    if swap is None:
        fewer, with_ = (whole, how) if codec.renderer and codec.renderer.prefixes else (settings, steps)
        for n in coarsest:
            drawn = codec.decode(ids, keep_tokens=n, **fewer)
            columns.append(_against(originals, drawn, f"{n} ids, {with_}" if n > 1 else f"1 id, {with_}"))
    else:
        others, other = codec.encode([swap]).expand_as(ids), as_images(swap, codec.image_size).expand_as(originals)
        for start, stop in [swap_range] if swap_range else [(last - n, last) for n in coarsest]:
            mixed = torch.cat([ids[:, :start], others[:, start:stop], ids[:, stop:]], dim=1)
            taken = f"id {start}" if stop - start == 1 else f"ids {start} to {stop - 1}" if stop > start else "no id"
            columns.append((codec.decode(mixed, **whole), [f"{taken} of {swap.name}"] * len(ids)))
        columns.append(_against(other, codec.decode(others, **whole), f"{last} ids, {how}"))
        columns.append((other, [swap.name] * len(ids)))
    cells = [list(zip(to_uint8(drawn), words, strict=True)) for drawn, words in columns]
    save_image(labelled_sheet(list(zip(*cells, strict=True))), out)
    figures = zip(images, ids.tolist(), psnr(again, originals).tolist(), strict=True)
    return [{"image": str(image), "ids": own, "psnr": value} for image, own, value in figures]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _against(originals: Tensor, drawn: Tensor, words: str) -> tuple[Tensor, list[str]]:
    """Return drawings with words that end in how near they are to the originals."""
    return drawn, [f"{words}, {value:.1f} dB" for value in psnr(drawn, originals).tolist()]


def edit_image(
    image: Path,
    instruction: str,
    model: Path,
    out: Path,
    tokenizer: Path | None,
    seed: int,
    precision: Precision = "32",
) -> list[int]:
    """Change a picture as a sentence says; returns the ids of what was drawn, finest first."""
    lm, codec = load_pair(model, tokenizer, precision)
    need_instructions(lm, model)
    drawn = lm.generate([image, instruction], codec, output="image", seed=seed, temperature=0.0)
    save_picture(to_uint8(drawn.images)[0], out)
    return drawn.ids[0].tolist()


def answer_question(
    image: Path, question: str, model: Path, tokenizer: Path | None, precision: Precision = "32"
) -> str:
    """Answer a question about a picture."""
    lm, codec = load_pair(model, tokenizer, precision)
    need_instructions(lm, model)
    return lm.generate([image, question], codec, output="text", temperature=0.0).text


def caption_image(image: Path, model: Path, tokenizer: Path | None, precision: Precision = "32") -> str:
    """Describe a picture in a sentence."""
    lm, codec = load_pair(model, tokenizer, precision)
    prompt = image if lm.template == "caption" else [image, "describe the picture"]
    return lm.generate(prompt, codec, output="text", temperature=0.0).text


def save_picture(picture: np.ndarray, out: Path) -> None:
    """Write a uint8 picture [H, W, 3]; small ones are enlarged by a whole factor."""
    factor = max(1, SIDE // picture.shape[0])
    enlarged = Image.fromarray(picture).resize((picture.shape[1] * factor, picture.shape[0] * factor), Image.NEAREST)
    save_image(enlarged, out)
