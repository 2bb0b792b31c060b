"""Read a list of captions: `captions` or `metadata`, `.jsonl`, `.csv`, `.tsv` or `.parquet`: file names and words."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.listing import Listing, ending, find_pictures, inside, name_in
from ddt_data.readers.records import Record, Refused, one_line, reason
from ddt_data.readers.tables import LISTS, NAMES, TEXTS, pick, read_rows

STEMS = ("captions", "metadata")  # what a list in a folder may be called, in any case


def read_captions(
    file: str | Path, files: Sequence[str] | None = None, images: str | Path | None = None
) -> Iterator[Record | Refused]:
    r"""Yield the pictures that a list names, sorted by name.

    Columns beside the picture (`file_name`, `image` or `path`) and the caption (`text` or `caption`) go to `meta`.
    Pictures in the folder that the list does not name are refused, as are lines that cannot be used.

    Args:
        file: The list.
        files: Those in its folder, if it is listed already.
        images: Folder that file names are relative to; by default that of the list.

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
    folder = Path(images or file.parent)
    records: dict[str, Record] = {}
    refused: list[Refused] = []
    for row in read_rows(file):
        if isinstance(row, Refused):
            refused.append(row)
            continue
        try:
            record = _record(folder, row[1])
            if records.setdefault(record.name, record) is not record:
                raise ValueError(f"a second caption for {record.name}; remove one")
        except ValueError as error:
            refused.append(Refused(row[0], reason(error)))
    for path in [] if images else find_pictures(folder, files):
        if (name := name_in(folder, path)) not in records:
            refused.append(Refused(name, f"no caption in {file.name}; add it or remove the picture"))
    yield from sorted([*records.values(), *refused], key=lambda record: record.name)


def find_lists(listing: Listing) -> list[Path]:
    """Return the lists of captions right inside of a folder, the one that is read first of all."""
    names = [name for name in listing.top[1] if ending(name) in LISTS and Path(name).stem.lower() in STEMS]
    names.sort(key=lambda name: (Path(name).stem.lower(), LISTS.index(ending(name)), name))
    return [listing.folder / name for name in names]


def _record(folder: Path, row: dict) -> Record:
    name, text = pick(row, NAMES), pick(row, TEXTS)
    if name is None or text is None or row[name] is None or row[text] is None:
        raise ValueError('not {"file_name": ..., "text": ...}; correct the line')
    words, path = one_line(row[text]), inside(folder, row[name])
    rest = {key: value for key, value in row.items() if key not in (name, text)}
    return Record(name_in(folder, path), image=path, text=words, meta=rest)
