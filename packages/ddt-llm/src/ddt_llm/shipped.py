# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/shipped.py
"""Models that come with this package, by name: `weights/NAME/PART` holds a part of one."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")


def shipped() -> list[str]:
    """Name the models that come with this package."""
    return sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir()) if WEIGHTS.is_dir() else []


def is_shipped(model: str | Path) -> bool:
    """Return whether a name is that of a model that comes with this package, and of no folder on this machine.

    Example:
        >>> is_shipped("runs/mine")
        False
    """
    return not Path(model).exists() and str(model) in shipped()


def folder_of(model: str | Path, part: str) -> Path:
    """Return the folder of a model: one on this machine, or else a part of the shipped one of that name.

    Example:
        >>> folder_of("runs/mine/tokenizer", "tokenizer").name
        'tokenizer'
    """
    return WEIGHTS / model / part if is_shipped(model) else Path(model)
