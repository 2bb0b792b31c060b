"""Code of users: what an import path or a file names, and the callbacks of a run among it."""

import importlib
import importlib.util
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning


def load_named(path: str) -> Any:
    """Return what `package.module.Name` or `file.py:Name` names.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If there is no such module, or it has no such name.

    Example:
        >>> load_named("collections.OrderedDict").__name__
        'OrderedDict'
        >>> load_named("collections.Fox")
        Traceback (most recent call last):
        ValueError: 'collections' has no 'Fox'
    """
    source, _, name = path.rpartition(":" if ".py:" in path else ".")
    module = _run_file(source) if source.endswith(".py") else _imported(path, source)
    if not hasattr(module, name):
        raise ValueError(f"'{source}' has no '{name}'")
    return getattr(module, name)


def _run_file(file: str) -> ModuleType:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _imported(path: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except (ImportError, ValueError) as error:  # ValueError: of an empty name
        said = f"{path!r} cannot be imported ({error}); write package.module.Name, or file.py:Name"
        raise ValueError(said) from error


def load_callbacks(paths: Sequence[str]) -> "list[lightning.Callback]":
    """Make the callbacks that a run's setting `callbacks` names.

    Args:
        paths: Of classes of Lightning callbacks that need no arguments, or of functions that return one.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If there is no such thing, or it is no callback.

    Example:
        >>> [type(each).__name__ for each in load_callbacks(["lightning.pytorch.callbacks.Timer"])]
        ['Timer']
    """
    import lightning

    made = []
    for path in paths:
        found = load_named(path)
        if callable(found) and not _needs_arguments(found):
            found = found()
        if not isinstance(found, lightning.Callback):
            raise ValueError(f"callbacks: {path!r} is no lightning.Callback that can be made without arguments")
        made.append(found)
    return made


def _needs_arguments(make: Any) -> bool:
    try:
        inspect.signature(make).bind()
    except TypeError:
        return True
    return False
