"""Pictures in terminals: what is sent holds the picture, as the protocols of kitty and iTerm2 are written down."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ddt_apps.use import inline as module
from ddt_apps.use.inline import half_blocks, inline, show

KITTY, ITERM, COLOURS = {"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}, {"COLORTERM": "truecolor"}


def noise(width, height):
    return np.random.default_rng(width).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (8, 5), (90, 70)])  # the last takes several chunks
def test_kitty_gets_the_picture_in_chunks(size):
    sent = inline(Image.fromarray(noise(*size)), KITTY, columns=20)
    parts = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", sent)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) + "\n" == sent  # and nothing else
    assert parts[0][0].startswith("a=T,f=100,q=2,c=20,") and (len(parts) > 1) == (size == (90, 70))
    assert all(len(data) <= 4096 and (len(data) % 4 == 0) for _, data in parts)
    assert [keys.rpartition("m=")[2] for keys, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
    png = base64.b64decode("".join(data for _, data in parts))
    assert (np.asarray(Image.open(io.BytesIO(png))) == noise(*size)).all()


def test_iterm_gets_the_picture_in_one_piece():
    sent = inline(Image.fromarray(noise(9, 7)), ITERM, columns=20)
    size, data = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);width=20:(.*)\a\n", sent).groups()
    png = base64.b64decode(data)
    assert len(png) == int(size) and (np.asarray(Image.open(io.BytesIO(png))) == noise(9, 7)).all()


def test_other_terminals_get_half_blocks_where_they_have_colours():
    picture = noise(12, 8)
    sent = inline(Image.fromarray(picture), COLOURS, columns=12)
    cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+)m\x1b\[48;2;(\d+);(\d+);(\d+)m\u2580", sent)
    seen = np.array(cells, int).reshape(4, 12, 2, 3).transpose(0, 2, 1, 3).reshape(8, 12, 3)
    assert (seen == picture).all() and sent.count("\n") == 4
    for multiplexer in ({"TMUX": "/tmux"}, {"STY": "1.x"}):  # which let no picture through
        for alone in (KITTY, ITERM, {"KITTY_WINDOW_ID": "1"}):
            assert inline(Image.fromarray(picture), alone | multiplexer) == ""
            assert inline(Image.fromarray(picture), alone | multiplexer | COLOURS) == half_blocks(picture)
    assert inline(Image.fromarray(picture), {"TERM": "xterm-256color"}) == ""


def test_only_a_terminal_is_shown_pictures(tmp_path, monkeypatch, capsys):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(module.os, "environ", COLOURS)
    show(tmp_path / "a.png")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True)
    show(tmp_path / "a.png")
    assert capsys.readouterr().out == half_blocks(noise(8, 8))
