"""Pictures in the terminal: whole where it has a protocol for them, else as coloured half blocks."""

import base64
import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS, SHEET = 32, 80  # characters across, of a picture and of a sheet
CHUNK = 4096  # characters that kitty takes at once
KITTY, ITERM = {"xterm-kitty", "xterm-ghostty"}, {"iTerm.app", "WezTerm"}


def show(file: Path, columns: int = COLUMNS) -> None:
    """Print a picture, where stdout is a terminal that can show it.

    Args:
        file: Of the picture.
        columns: Characters across.
    """
    print(inline(Image.open(file).convert("RGB"), dict(os.environ), columns) if sys.stdout.isatty() else "", end="")


def inline(picture: Image.Image, environment: dict[str, str], columns: int = COLUMNS) -> str:
    """Return what shows a picture in the terminal that environment variables tell of; "" where they tell of none.

    Inside tmux and screen, which keep pictures from the terminal, it is half blocks.

    Example:
        >>> inline(Image.new("RGB", (8, 8)), {"TERM": "xterm-kitty"})[:21]
        '\\x1b_Ga=T,f=100,q=2,c=32'
        >>> inline(Image.new("RGB", (8, 8)), {"TERM": "dumb"})
        ''
    """
    alone = not environment.get("TMUX") and not environment.get("STY")
    if alone and (environment.get("TERM") in KITTY or environment.get("KITTY_WINDOW_ID")):
        return _kitty(_png(picture), columns)
    if alone and {environment.get("TERM_PROGRAM"), environment.get("LC_TERMINAL")} & {*ITERM, "iTerm2"}:
        png = _png(picture)
        return f"\x1b]1337;File=inline=1;size={len(png)};width={columns}:{base64.b64encode(png).decode()}\a\n"
    if environment.get("COLORTERM") in ("truecolor", "24bit"):
        return half_blocks(np.asarray(picture), columns)
    return ""


def half_blocks(picture: np.ndarray, columns: int = COLUMNS) -> str:
    """Return a uint8 picture [H, W, 3] as coloured half blocks, two pixels a character, for a 24-bit terminal.

    Example:
        >>> black = half_blocks(np.zeros((2, 2, 3), np.uint8), columns=1)
        >>> black == "\\x1b[38;2;0;0;0m\\x1b[48;2;0;0;0m\\u2580\\x1b[0m\\n"
        True
    """
    rows = max(1, round(columns * picture.shape[0] / picture.shape[1] / 2))
    small = np.asarray(Image.fromarray(picture).resize((columns, 2 * rows), Image.BOX))
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        blocks = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m\u2580"
            for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(blocks) + "\x1b[0m\n")
    return "".join(lines)


def _kitty(png: bytes, columns: int) -> str:
    text = base64.b64encode(png).decode()
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        first = f"a=T,f=100,q=2,c={columns}," if number == 0 else ""
        parts.append(f"\x1b_G{first}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(parts) + "\n"


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
