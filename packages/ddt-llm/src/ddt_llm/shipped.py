# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/shipped.py
"""Models that come with this package, by name: `weights/NAME/PART` holds a part of one."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")


def shipped() -> list[str]:
    """Name the models that come with this package."""
    return sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir()) if WEIGHTS.is_dir() else []


def folder_of(model: str | Path, part: str) -> Path:
    """Return the folder of a model: one on this machine, or else a part of the shipped one of that name.

    Example:
        >>> folder_of("runs/mine/tokenizer", "tokenizer").name
        'tokenizer'
    """
    model = Path(model)
    return WEIGHTS / model / part if not model.exists() and str(model) in shipped() else model
