"""ddt data peek: a picture of a batch as training sees it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddt_data import contact_sheet, open_shards
from ddt_data.shards.images import file_format, save_image
from ddt_data.terminal import printable
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor, to_uint8


def peek(
    shards: str, out: Path, step: int = 0, batch_size: int = 16, seed: int = 0, tokenizer: Path | None = None
) -> str:
    """Draw batch `step` of a run with this data, batch size and seed, with the words of its samples.

    Args:
        shards: As `data` in a configuration: a shard folder, or several with their shares.
        out: Picture to write, .png, .jpg or .webp.
        step: From 0.
        batch_size: Samples in it.
        seed: Of the order.
        tokenizer: Run that draws ids; needed for id shards. Pictures are shown as it gives them back.

    Returns:
        The words, a line for each sample.

    Raises:
        FileNotFoundError: If the shards are missing.
        ValueError: If they hold ids and no tokenizer of theirs is named, or `out` has another ending.

    Example:
        >>> import tempfile
        >>> from ddt_apps.shards.make import make_scenes
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = make_scenes(folder / "scenes", count=4, level="tiny")
        >>> words = peek(str(folder / "scenes"), folder / "batch.png", batch_size=2)
        >>> len(words.splitlines()), (folder / "batch.png").is_file()
        (2, True)
    """
    file_format(out)
    codec = Codec.from_pretrained(tokenizer) if tokenizer else None
    dataset = open_shards(shards)
    if dataset.manifest.tokenizer is not None:
        if codec is None:
            raise ValueError(f"'{shards}' holds ids; name the run of their tokenizer with --tokenizer to draw them")
        dataset = open_shards(shards, codec.fingerprint)
    order = dataset.order(batch_size, step + 1, seed, start=step)
    pictures, captions, lines = [], [], []
    for sample in (dataset[index] for index in next(iter(order))):
        words = _words(sample)
        lines.append(printable(f"{sample['key']}: {words}"))
        for picture, ids, name in (("image", "ids", words), ("target", "target_ids", "becomes this")):
            if picture in sample or ids in sample:
                pictures.append(_picture(sample, picture, ids, codec))
                captions.append(name)
    if pictures:
        save_image(contact_sheet(pictures, captions, side=128), out)
    return "\n".join(lines)


def _picture(sample: dict[str, Any], picture: str, ids: str, codec: Codec | None) -> np.ndarray:
    if ids in sample:
        return to_uint8(codec.decode(torch.from_numpy(sample[ids])[None]))[0]
    images = to_tensor([sample[picture]])
    return to_uint8(images if codec is None else codec.decode(codec.encode(images)))[0]


def _words(sample: dict[str, Any]) -> str:
    meta = sample.get("meta", {})
    words = [sample.get("text", ""), f"[{meta['edit'].get('instruction')}]" if "edit" in meta else ""]
    words += [f"{asked.get('question')} {asked.get('answer')}" for asked in meta.get("questions", ())[:1]]
    return " ".join(word for word in words if word)
