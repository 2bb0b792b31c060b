"""Examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import ddt_apps

MODULES = [info.name for info in pkgutil.iter_modules(ddt_apps.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(f"ddt_apps.{name}")).failed == 0
