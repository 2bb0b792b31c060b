"""What readers yield: records of pictures and words, and what had to be left out."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """Bytes inside a file, such as one member of a tar."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the bytes.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp(), "greeting")
            >>> _ = file.write_bytes(b"hello world")
            >>> Span(file, offset=6, size=5).read()
            b'world'
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Picture = Path | Span | bytes


@dataclass(frozen=True)
class Record:
    """One sample before its pictures are read; a reader is an iterable of these and of `Refused`.

    Example:
        >>> Record("cat.jpg", image=Path("cat.jpg"), text="a cat").meta
        {}
    """

    name: str  # what messages and `meta["source"]` call it: the same on every machine, such as a path in its folder
    image: Picture | None = None
    target: Picture | None = None  # the edited picture
    text: str | None = None
    meta: dict = field(default_factory=dict)  # `edit`, `questions` and whatever else is known


@dataclass(frozen=True)
class Refused:
    """An input that cannot become a sample; the manifest names it."""

    name: str
    why: str  # and what to do about it; does not repeat the name


def bytes_or_path(picture: Picture) -> bytes | Path:
    """Turn a picture into what Pillow opens."""
    return picture.read() if isinstance(picture, Span) else picture


def one_line(text: object) -> str:
    r"""Join all white space, as captions are stored.

    Raises:
        ValueError: If it is no text, or empty.

    Example:
        >>> one_line(" a cat \n on a sofa ")
        'a cat on a sofa'
    """
    if not isinstance(text, str) or not (words := " ".join(text.split())):
        raise ValueError("its caption is empty or no text; write one")
    return words
