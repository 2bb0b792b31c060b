"""The Python blocks of the README run, one after the other; so do the examples in docstrings."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ddt_tokenizer

README = Path(__file__).parents[1] / "README.md"
MODULES = [m.name for m in pkgutil.walk_packages(ddt_tokenizer.__path__, "ddt_tokenizer.") if "training" not in m.name]


def test_python_blocks_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    exec(compile(code, str(README), "exec"), {})


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module):
    assert not doctest.testmod(importlib.import_module(module)).failed
