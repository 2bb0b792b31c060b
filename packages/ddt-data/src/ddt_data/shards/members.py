"""How the fields of a sample are stored in a tar: one member each, named by its extension."""

import io
import json

import numpy as np
from numpy.typing import NDArray

from ddt_data.shards.block_writing import ARRAYS, Sample, checked_ids, npy
from ddt_data.shards.images import decode_image, encode_image


def _array(data: bytes) -> NDArray:
    return np.load(io.BytesIO(data), allow_pickle=False)


FIELDS = {"txt": ("text", bytes.decode), "json": ("meta", json.loads)}  # extension: field of a sample, and its decoder
FIELDS |= {f"{name}.npy": (field, _array) for field, name in ARRAYS.items()}


def encode_members(sample: Sample, image_format: str, tokenizer: dict | None) -> dict[str, bytes]:
    """Encode the fields of a sample by extension.

    Raises:
        ValueError: If a field is unknown, or the ids do not fit the tokenizer.

    Example:
        >>> encode_members({"key": "0", "text": "a fox"}, "png", None)
        {'txt': b'a fox'}
    """
    members = {}
    for field, value in sample.items():
        match field:
            case "key":
                pass
            case "image":
                members[image_format] = encode_image(value, image_format)
            case "target":
                members["target.png"] = encode_image(value)
            case "text":
                members["txt"] = value.encode()
            case "meta":
                members["json"] = json.dumps(value, ensure_ascii=False, default=str).encode()
            case "ids" | "target_ids":
                members[f"{ARRAYS[field]}.npy"] = npy(checked_ids(sample["key"], value, tokenizer))
            case "latents" | "target_latents":
                members[f"{ARRAYS[field]}.npy"] = npy(np.asarray(value, np.float16))
            case _:
                raise ValueError(f"sample {sample['key']!r} has an unknown field {field!r}")
    return members


def decode_member(sample: Sample, extension: str, data: bytes, name: str) -> None:
    """Put what a member holds into a sample; members of unknown extension are passed over.

    Raises:
        ValueError: If the data cannot be read; the message calls it `name`.

    Example:
        >>> sample = {"key": "0"}
        >>> decode_member(sample, "txt", b"a fox", "0.txt")
        >>> sample
        {'key': '0', 'text': 'a fox'}
    """
    match extension:
        case "png" | "jpg" | "webp":
            sample["image"] = decode_image(data, name)
        case "target.png":
            sample["target"] = decode_image(data, name)
        case _ if extension in FIELDS:
            field, decode = FIELDS[extension]
            try:
                sample[field] = decode(data)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{name} cannot be read ({error}); make the shards again") from error
