"""Read a folder of pictures, alone or with words beside `name.jpg`: `name.txt`, `name.caption`, `name.json`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.listing import CAPTIONS, Listing, ending, find_described, find_pictures, name_in, stem
from ddt_data.readers.records import Record, Refused, reason
from ddt_data.readers.words import read_words


def read_folder(folder: str | Path, files: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    """Yield the pictures of a folder and its subfolders, sorted; once one has a caption beside it, each must have one.

    A `.json` beside a picture gives its `meta`, and its caption where no other is.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cat.jpg").write_bytes(b"..."), (folder / "cat.txt").write_text("a cat")
        >>> [(record.name, record.text) for record in read_folder(folder)]
        [('cat.jpg', 'a cat')]
    """
    folder = Path(folder)
    files = Listing(folder).files if files is None else files
    described = find_described(files)
    captioned = any(ending(file) in CAPTIONS for beside in described.values() for file in beside)
    taken: dict[str, Path] = {}
    for path in find_pictures(folder, files):
        name, beside = name_in(folder, path), described.get(str(path), [])
        try:
            if (captioned or beside) and (other := taken.setdefault(stem(str(path)), path)) != path:
                raise ValueError(f"shares its caption with {other.name}; rename one")
            if not path.is_file():
                raise ValueError("is no file, or a link that leads nowhere; remove it")
            text, meta = _words(beside)
            if captioned and text is None:
                what = (
                    "its caption is empty; write one" if beside else "no caption, while other pictures have one; add it"
                )
                raise ValueError(what)
            yield Record(name, image=path, text=text, meta=meta)
        except (ValueError, OSError) as error:
            yield Refused(name, reason(error))


def _words(beside: Sequence[str]) -> tuple[str | None, dict]:
    for file in beside:
        if not os.path.isfile(file):
            raise ValueError(f"its {os.path.basename(file)} is no file, or a link that leads nowhere; remove that")
    if len({ending(file) for file in beside}) < len(beside):
        raise ValueError(f"has words in {' and '.join(sorted(map(os.path.basename, beside)))}; remove one")
    return read_words({ending(file): Path(file).read_bytes for file in sorted(beside)})
