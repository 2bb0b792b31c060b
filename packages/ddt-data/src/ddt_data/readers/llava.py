"""Read LLaVA-style instructions: a JSON list of pictures with conversations about them."""

from collections.abc import Iterator
from pathlib import Path

from ddt_data.readers.coco import find_pictures_of
from ddt_data.readers.listing import inside
from ddt_data.readers.records import Record, Refused, one_line, reason
from ddt_data.readers.text import read_json

MARK = "<image>"


def read_llava(file: str | Path, images: str | Path | None = None) -> Iterator[Record | Refused]:
    r"""Yield the conversations of a LLaVA-style file; turns become `meta["questions"]`, each with its answer.

    Args:
        file: A JSON list of {"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}.
        images: Folder that the names of pictures are relative to; by default the one near the file that holds some.

    Raises:
        ValueError: If the file is not of this format, or no folder holds its pictures.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.jpg").write_bytes(b"...")
        >>> turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
        >>> _ = (folder / "sft.json").write_text(json.dumps([{"image": "1.jpg", "conversations": turns}]))
        >>> next(read_llava(folder / "sft.json")).meta["questions"]
        [{'kind': 'instruction', 'question': 'What is it?', 'answer': 'A cat.'}]
    """
    file = Path(file)
    found = read_json(file)
    if not is_llava(found):
        raise ValueError(f"{file}: not LLaVA-style instructions; it must be a list of entries with `conversations`")
    names = [entry["image"] for entry in found if isinstance(entry, dict) and isinstance(entry.get("image"), str)]
    folder = Path(images) if images else find_pictures_of(file, names)
    for number, entry in enumerate(found):
        name = f"{file.name}, entry {number}"
        try:
            if not isinstance(entry, dict) or "image" not in entry:
                raise ValueError("has no picture; text alone is packed with: ddt data pack FILE.jsonl")
            path = inside(folder, entry["image"])
            meta = {"questions": _questions(entry.get("conversations")), "picture": entry["image"]}
            yield Record(name, image=path, meta=meta)
        except ValueError as error:
            yield Refused(name, reason(error))


def is_llava(found: object) -> bool:
    """Return whether a JSON is a list of conversations."""
    return isinstance(found, list) and any(isinstance(entry, dict) and "conversations" in entry for entry in found)


def _questions(turns: object) -> list[dict]:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise ValueError("its conversations are not pairs of a question and an answer")
    questions = []
    for asked, told in zip(turns[::2], turns[1::2], strict=True):
        try:
            speakers, question, answer = (asked["from"], told["from"]), _text(asked["value"]), _text(told["value"])
            question = one_line(question.replace(MARK, " "))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError('a turn is not {"from": ..., "value": ...}') from error
        if speakers != ("human", "gpt"):
            raise ValueError(f"its turns are of {speakers[0]} and {speakers[1]}, not of human and gpt")
        if MARK in answer or not answer.strip():
            raise ValueError("an answer is empty or holds a picture")
        questions.append({"kind": "instruction", "question": question, "answer": answer.strip()})
    return questions


def _text(value: object) -> str:
    """Return what was said as text; answers to "how many" are written as numbers, too."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{type(value)} is no text")
    return str(value)
