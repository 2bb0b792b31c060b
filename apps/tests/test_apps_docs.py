"""Examples in docstrings run."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ddt_apps

MODULES = [info.name for info in pkgutil.walk_packages(ddt_apps.__path__, "ddt_apps.") if "__main__" not in info.name]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    if ".serve." in name:
        pytest.importorskip("starlette")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme_examples_run():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
