"""Read class folders: `<class>/<picture>`, the class in words being the caption."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ddt_data.readers.listing import find_described, find_pictures, name_in
from ddt_data.readers.records import Record, Refused


def read_classes(folder: str | Path, files: Sequence[str] | None = None) -> Iterator[Record | Refused]:
    """Yield the pictures of class folders; `meta["label"]` is the folder's name, the caption the same in words.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "golden_retriever").mkdir()
        >>> _ = (folder / "golden_retriever" / "1.jpg").write_bytes(b"...")
        >>> [(record.text, record.meta) for record in read_classes(folder)]
        [('golden retriever', {'label': 'golden_retriever'})]
    """
    folder = Path(folder)
    for path in find_pictures(folder, files):
        name = name_in(folder, path)
        label, _, rest = name.partition("/")
        if not rest:
            yield Refused(name, "stands outside of the class folders; move it into one")
        elif not path.is_file():
            yield Refused(name, "is no file, or a link that leads nowhere; remove it")
        else:
            words = " ".join(label.replace("_", " ").split()) or label
            yield Record(name, image=path, text=words, meta={"label": label})


def has_classes(folder: Path, files: Sequence[str]) -> bool:
    """Return whether a folder holds class folders: two or more, with pictures right inside and no words beside them."""
    pictures = find_pictures(folder, files)
    within = {path.parent for path in pictures}
    deep = any(path.parent.parent != folder for path in pictures)
    return len(within) > 1 and not deep and not find_described(files)
