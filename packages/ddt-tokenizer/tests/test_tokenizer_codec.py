"""The pair that encodes and draws, without the package that draws; tests/test_contracts.py has the rest."""

import subprocess
import sys

import pytest

from ddt_tokenizer import Codec


@pytest.mark.parametrize("load", [Codec.from_pretrained, Codec.from_selftok])
def test_without_the_decoder_one_line_says_what_to_install(load, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ddt_decoder", None)
    with pytest.raises(ValueError, match=r"ddt-decoder, which is not installed; see the extra \[decode\]"):
        load(tmp_path)


def test_the_decoder_is_loaded_only_when_it_draws():
    code = "import sys, ddt_tokenizer; print('ddt_decoder' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
