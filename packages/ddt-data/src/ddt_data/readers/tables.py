"""Lists that people write: rows of .jsonl, .csv, .tsv and .parquet files, each with the line where it stands."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from ddt_data.readers.records import Refused
from ddt_data.readers.text import open_text, parse_object, read_lines

LISTS = (".jsonl", ".csv", ".tsv", ".parquet")  # in any case
NAMES = ("file_name", "image", "path")  # what the column of the picture may be called
TEXTS = ("text", "caption")  # and that of the caption
SEPARATORS = ",;\t|"
Row = tuple[str, dict]  # where it stands, and its cells by column


def pick(columns: Mapping | Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the first column that is wanted, whatever the case of its letters.

    Example:
        >>> pick({"File_Name": "a.png", "Text": "a fox"}, ("text", "caption"))
        'Text'
    """
    lower = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in wanted if name in lower), None)


def read_rows(file: Path) -> Iterator[Row | Refused]:
    r"""Yield the rows of a list, and by its line what cannot be read.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it cannot be read at all, lacks the columns of picture and caption (not .jsonl), or (.parquet)
            pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "captions.csv")
        >>> _ = file.write_text("file_name;text\na.png;a fox\nb.png;an owl;big\n")
        >>> good, bad = read_rows(file)
        >>> good, bad.name
        (('captions.csv, line 2', {'file_name': 'a.png', 'text': 'a fox'}), 'captions.csv, line 3')
    """
    match file.suffix.lower():
        case ".parquet":
            yield from ((f"{file.name}, row {number}", row) for number, row in enumerate(_parquet(file), start=1))
        case ".csv" | ".tsv":
            yield from _csv(file)
        case _:
            for number, line in read_lines(file):
                where = f"{file.name}, line {number}"
                try:
                    yield where, parse_object(line)
                except ValueError:
                    yield Refused(where, "no JSON object, or one too deep; correct the line")


def _csv(file: Path) -> Iterator[Row | Refused]:
    with open_text(file, newline="") as lines:
        first = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        table = csv.reader(lines, delimiter=_separator(first), strict=True)
        header: list[str] = []
        while True:
            number = table.line_num + 1
            where = f"{file.name}, line {number}"
            try:
                cells = next(table)
            except StopIteration:
                break
            except csv.Error as error:
                if "expected after" in str(error):  # a quote closes within a cell: its own lines are spoiled
                    lines_of = where if table.line_num == number else f"{file.name}, lines {number} to {table.line_num}"
                    yield Refused(lines_of, "its quotes do not match; write quotes inside a cell twice")
                    continue
                yield Refused(f"{where} and what follows", "a quote that never closes; close it")
                break
            if not any(map(str.strip, cells)):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                while not header[-1]:  # spreadsheets fill up with empty cells
                    header.pop()
                _check_columns(file, header)
            elif any(map(str.strip, cells[len(header) :])):
                why = f"{len(cells)} cells, the header names {len(header)}; put quotes around a cell with separators"
                yield Refused(where, why)
            else:
                yield where, dict(zip_longest(header, cells[: len(header)]))


def _separator(header: str) -> str:
    """Choose what splits a header into the columns that are wanted, or else into most."""

    def columns(separator: str) -> tuple[bool, int]:
        try:
            found = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            found = []
        return bool(pick(found, NAMES) and pick(found, TEXTS)), len(found)

    return max(SEPARATORS, key=columns)


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    lower = [column.lower() for column in columns]
    if not (pick(columns, NAMES) and pick(columns, TEXTS)) or len(set(lower)) < len(lower):
        said = ", ".join(columns)[:120] or "none"
        raise ValueError(
            f"{file}: its columns are {said}; it needs one {' or '.join(NAMES)} and one {' or '.join(TEXTS)}, each "
            "column of another name; rename them, or leave the list unread with kind 'folder'"
        )


def _parquet(file: Path) -> Iterator[dict]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{file}: reading it needs pyarrow; pip install pyarrow, or convert it to .csv") from error
    try:
        opened = parquet.ParquetFile(file)
        _check_columns(file, opened.schema_arrow.names)
        for batch in opened.iter_batches(batch_size=256):  # rows may hold whole pictures
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: no parquet that can be read; write it again") from error
