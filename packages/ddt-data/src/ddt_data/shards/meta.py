"""What the `meta` of a sample may hold for training to use it, and what becomes of the rest."""

from typing import Any

OURS = ("source", "questions", "edit")  # keys of `meta` with a meaning of ours


def misfits(meta: dict[str, Any]) -> dict[str, str]:
    """Return the keys whose values training would trip over, each with what is wrong.

    Example:
        >>> misfits({"questions": [{"question": "What is it?", "answer": "a fox"}], "edit": "make it blue"})
        {'edit': 'edit is not {"instruction": ...}'}
    """
    found = {}
    questions, edit = meta.get("questions", []), meta.get("edit", {"instruction": "none"})
    if not isinstance(questions, list) or not all(_has(each, "question", "answer") for each in questions):
        found["questions"] = 'questions are not a list of {"question": ..., "answer": ...}'
    if not _has(edit, "instruction"):
        found["edit"] = 'edit is not {"instruction": ...}'
    return found


def usable(meta: dict[str, Any]) -> dict[str, Any]:
    """Return `meta` with what does not fit under other names, and so `source`, which is the name of the input.

    Example:
        >>> usable({"source": "a museum", "questions": "how many?", "width": 3})
        {'original_source': 'a museum', 'original_questions': 'how many?', 'width': 3}
    """
    odd = {"source", *misfits(meta)}
    return {apart(key, meta) if key in odd else key: value for key, value in meta.items()}


def apart(key: str, taken: dict[str, Any] | tuple = ()) -> str:
    """Return the name under which a value is kept that does not fit its own."""
    name = f"original_{key}"
    return apart(name, taken) if name in taken else name


def _has(value: object, *keys: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) and value[key].strip() for key in keys)
