"""How the fields of a sample are stored in a tar: one member each, named by its extension."""

import json
from typing import Any

import numpy as np

from ddt_data.shards.block_writing import ARRAYS, Sample, checked_ids, from_npy, npy
from ddt_data.shards.images import decode_image, encode_image

FIELDS = {"txt": ("text", bytes.decode), "json": ("meta", json.loads)}  # extension: field of a sample, and its decoder
FIELDS |= {f"{name}.npy": (field, lambda data: np.array(from_npy(data))) for field, name in ARRAYS.items()}


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


def decode_member(sample: Sample, extension: str, data: bytes, name: str, max_pixels: int | None = None) -> None:
    """Put what a member holds into a sample; members of unknown extension are passed over.

    Args:
        max_pixels: That a picture may have; see `Manifest`.

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
            sample["image"] = decode_image(data, name, max_pixels)
        case "target.png":
            sample["target"] = decode_image(data, name, max_pixels)
        case _ if extension in FIELDS:
            field, decode = FIELDS[extension]
            try:
                sample[field] = decode(data)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name} cannot be read ({error}); make the shards again") from error


def check_fields(sample: Sample, tokenizer: dict | None, name: str) -> Sample:
    """Return a sample that was read from a shard, which may come from anybody, if its fields are what they should be.

    Args:
        tokenizer: Of the ids, if it is known.
        name: What errors call the sample.

    Raises:
        ValueError: If a field is of another kind, or the ids do not fit the tokenizer.

    Example:
        >>> check_fields({"key": "0", "text": 5}, None, "000000.tar, sample 0")
        Traceback (most recent call last):
        ValueError: 000000.tar, sample 0: its text is damaged; copy or make the shards again
    """
    for field, value in sample.items():
        if not _fits(field, value, tokenizer):
            raise ValueError(f"{name}: its {field} is damaged; copy or make the shards again")
    return sample


def _fits(field: str, value: Any, tokenizer: dict | None) -> bool:
    match field:
        case "key" | "text":
            return isinstance(value, str)
        case "meta":
            questions, edit = (value.get("questions", []), value.get("edit", {})) if isinstance(value, dict) else (0, 0)
            lists = isinstance(questions, list) and all(isinstance(question, dict) for question in questions)
            return lists and isinstance(edit, dict)
        case "ids" | "target_ids":
            if value.dtype.kind not in "iu" or value.ndim != 1 or tokenizer is None:
                return value.dtype.kind in "iu" and value.ndim == 1
            count, size = tokenizer["num_tokens"], tokenizer["codebook_size"]
            return len(value) == count and value.min() >= 0 and value.max() < size
        case "latents" | "target_latents":
            return value.dtype.kind == "f" and value.ndim == 3
    return field in ("image", "target")
