"""Read a list of captions: `captions.jsonl`, `.csv` or `.parquet`, each line a file name and its words."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.folder import find_pictures, name_in
from ddt_data.readers.records import Record, Refused, one_line

NAMES = ("file_name", "image", "path")  # what the column of the picture may be called
TEXTS = ("text", "caption")  # and that of the caption


def read_captions(file: str | Path, files: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    r"""Yield the pictures that a list names, sorted by name; file names are relative to the list.

    Columns beside the picture (`file_name`, `image` or `path`) and the caption (`text` or `caption`) go to `meta`.
    Pictures in the folder that the list does not name are refused, as are lines that cannot be used.

    Raises:
        ValueError: If the table lacks a column, or (.parquet) pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.png").write_bytes(b"...")
        >>> _ = (folder / "captions.csv").write_text("file_name,text\na.png,a fox\nb.png,an owl\n")
        >>> [record.name for record in read_captions(folder / "captions.csv")]
        ['a.png', 'captions.csv, line 3']
    """
    file = Path(file)
    records: dict[str, Record] = {}
    refused: list[Refused] = []
    for where, row in read_rows(file):
        try:
            record = _record(file.parent, row)
            if records.setdefault(record.name, record) is not record:
                raise ValueError(f"a second caption for {record.name}; remove one")
        except ValueError as error:
            refused.append(Refused(where, str(error)))
    for path in find_pictures(file.parent, files):
        if (name := name_in(file.parent, path)) not in records:
            refused.append(Refused(name, f"no caption in {file.name}; add it or remove the picture"))
    yield from sorted([*records.values(), *refused], key=lambda record: record.name)


def inside(folder: Path, name: object) -> Path:
    """Turn a file name of a list into a path, which must lie in the folder and exist.

    Raises:
        ValueError: If it is no text, leads out of the folder, or there is no such file.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is no file name")
    path = folder / name
    # Not Path.resolve and Path.is_file, which raise on loops of links and on names that are too long.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{name} leads out of the folder")
    if not os.path.isfile(path):
        raise ValueError(f"no such picture, {name}; add it or remove the line")
    return path


def _record(folder: Path, row: object) -> Record:
    if not isinstance(row, dict):
        raise ValueError("no JSON object; correct the line")
    name, text = (next((row[key] for key in keys if key in row), None) for keys in (NAMES, TEXTS))
    if name is None or text is None:
        raise ValueError('not {"file_name": ..., "text": ...}; correct the line')
    if isinstance(text, str) and not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("its caption is not UTF-8; convert the file")
    path = inside(folder, name)
    rest = {key: value for key, value in row.items() if key not in (*NAMES, *TEXTS, None)}
    return Record(name_in(folder, path), image=path, text=one_line(text), meta=rest)


def read_rows(file: Path) -> Iterator[tuple[str, object]]:
    """Yield where each row of a .jsonl, .csv or .parquet stands, and the row; None where it cannot be read."""
    if file.suffix == ".parquet":
        yield from ((f"{file.name}, row {n}", row) for n, row in enumerate(_parquet(file), start=1))
        return
    # A wrong byte spoils its own line alone.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        if file.suffix == ".csv":
            table = csv.DictReader(lines)
            try:
                yield from ((f"{file.name}, line {table.line_num}", row) for row in table)
            except csv.Error:  # the rest cannot be told apart
                yield f"{file.name}, line {table.line_num} and what follows", None
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"{file.name}, line {number}", json.loads(line)
                except (ValueError, RecursionError):
                    yield f"{file.name}, line {number}", None


def _parquet(file: Path) -> Iterator[dict]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{file}: reading it needs pyarrow; pip install pyarrow, or convert it to .csv") from error
    for batch in parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()
