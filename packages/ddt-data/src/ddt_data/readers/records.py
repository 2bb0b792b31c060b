"""What readers yield: records of pictures and words, and what had to be left out."""

import errno
from dataclasses import dataclass, field
from pathlib import Path

LONGEST = 200  # characters of a reason


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
    fault: bool = True  # False: named all the same, but no loss, such as a README, so that `strict` goes on


def bytes_or_path(picture: Picture) -> bytes | Path:
    """Turn a picture into what Pillow opens."""
    return picture.read() if isinstance(picture, Span) else picture


def one_line(text: object) -> str:
    r"""Join all white space, as captions are stored.

    Raises:
        ValueError: If it is no text, or empty, or holds what UTF-8 cannot.

    Example:
        >>> one_line(" a cat \n on a sofa ")
        'a cat on a sofa'
    """
    if not isinstance(text, str) or not (words := " ".join(text.split())):
        raise ValueError("its caption is empty or no text; write one")
    if not is_utf8(words):
        raise ValueError("its caption is not UTF-8; convert the file")
    return words


def is_utf8(text: str) -> bool:
    r"""Return whether a text can be written; bytes that are not UTF-8 were read as halves of letters.

    Example:
        >>> is_utf8("größe"), is_utf8("gr\udcf6\udcdfe")
        (True, False)
    """
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def reason(error: Exception | str) -> str:
    r"""Return what is wrong in one line that may be shown and kept: short, printable, the same on every machine.

    Example:
        >>> reason("torn \n in \x1b[31m two")
        'torn in �[31m two'
        >>> reason(FileNotFoundError(2, "No such file or directory", "a.png"))
        'is gone, or a link that leads nowhere; remove it'
    """
    system = error.__cause__ if isinstance(error, Exception) and isinstance(error.__cause__, OSError) else error
    if isinstance(system, OSError) and system.errno:
        return SYSTEM.get(system.errno, "cannot be read from the disk; copy it again")
    if isinstance(error, UnicodeEncodeError):  # by whoever writes it
        return "holds letters that UTF-8 does not know; convert the file"
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(error).split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 65]} ... {text[-60:]}"


SYSTEM = dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "is gone, or a link that leads nowhere; remove it")
SYSTEM |= dict.fromkeys((errno.EACCES, errno.EPERM), "may not be read; change its permissions")
