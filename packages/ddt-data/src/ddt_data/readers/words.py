"""The words of one picture, from the files that share its name: .txt, .caption, and .json with what else is known."""

from collections.abc import Callable, Mapping

from ddt_data.readers.listing import CAPTIONS
from ddt_data.readers.records import one_line
from ddt_data.readers.tables import TEXTS, pick
from ddt_data.readers.text import decode, parse_object


def read_words(beside: Mapping[str, Callable[[], bytes]]) -> tuple[str | None, dict]:
    """Return the caption of a picture, None without one, and what else is known of it.

    The caption is that of the .txt, else of the .caption, else of the .json; if the first two differ, both are kept as
    `captions`.

    Args:
        beside: What gives the bytes of each file, by its ending.

    Raises:
        ValueError: If one cannot be read.

    Example:
        >>> read_words({".txt": lambda: b"", ".json": lambda: b'{"caption": "a fox", "width": 9}'})
        ('a fox', {'caption': 'a fox', 'width': 9})
    """
    meta: dict = {}
    captions: list[str] = []
    for ending, read in beside.items():
        try:
            text = decode(read())
            if ending == ".json":
                meta = parse_object(text)
        except ValueError as error:
            raise ValueError(f"its {ending} {error}") from error
        if ending in CAPTIONS and text.strip():
            captions.insert(0 if ending == CAPTIONS[0] else len(captions), one_line(text))
    if not captions:
        written = meta.get(pick(meta, TEXTS[::-1]) or "")
        return one_line(written) if written else None, meta
    if len(set(captions)) > 1:
        meta = {"captions": captions, **meta}
    return captions[0], meta
