"""The Python blocks of the README run, one after the other; so do the examples in docstrings."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SOURCES = sorted((README.parent / "src" / "ddt_llm").glob("*.py"))
MODULES = [file.stem for file in SOURCES if ">>> " in file.read_text()]


def test_python_blocks_of_the_readme_run():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    exec(compile(code, str(README), "exec"), {})


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"ddt_llm.{module}"))
    assert result.attempted and not result.failed


def test_import_is_light():
    heavy = "{'lightning', 'omegaconf', 'transformers', 'diffusers', 'tokenizers'}"
    subprocess.run([sys.executable, "-c", f"import sys, ddt_llm; assert not {heavy} & set(sys.modules)"], check=True)
