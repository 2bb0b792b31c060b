# Copied from packages/ddt-data/src/ddt_data/readers/text.py
"""Text and JSON that other programs wrote: read strictly as UTF-8, or refused in one line."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

DEEPEST = 50  # levels of a JSON object that is kept; Python cannot write all that it reads


def decode(data: bytes) -> str:
    r"""Return bytes as text, without the mark that some programs put at the beginning.

    Raises:
        ValueError: If they are not UTF-8.

    Example:
        >>> decode(b"\xef\xbb\xbfa fox")
        'a fox'
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start}); convert it") from error


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """Open a text file, without its mark; a byte that is not UTF-8 becomes a surrogate and spoils its own line alone.

    Raises:
        FileNotFoundError: If it is missing, a dead link, or no file.
        ValueError: If it is UTF-16.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, or a link that leads nowhere; name another, or remove it")
    with open(file, "rb") as start:
        if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"{file}: is UTF-16; save it as UTF-8")
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    r"""Yield number and content of each line that is not blank; lines end at \n and \r alone.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is UTF-16.
    """
    with open_text(file) as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def parse_json(text: str) -> object:
    """Read JSON of any shape.

    Raises:
        ValueError: If it is none, or too deep; in one line, without the name of the file.

    Example:
        >>> parse_json("{")
        Traceback (most recent call last):
            ...
        ValueError: is not JSON (line 1, column 2); correct it
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}, column {error.colno}); correct it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise ValueError("is JSON too deep or too large to read; correct it") from error


def parse_object(text: str) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: If it is none, or cannot be kept; in one line, without the name of the file.

    Example:
        >>> parse_object('{"caption": "a fox"}')
        {'caption': 'a fox'}
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("is no JSON object; correct it")
    level: list[object] = [found]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return found
    raise ValueError(f"is JSON of more than {DEEPEST} levels; make it flatter")


def read_json(file: Path) -> object:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON in UTF-8.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, or a link that leads nowhere; name another, or remove it")
    try:
        return parse_json(decode(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
