# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/choices.py
"""Settings that are one of a few words."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(config: Any) -> None:
    """Refuse values of a dataclass's `Literal` fields that are none of the words listed.

    Raises:
        ValueError: If a value is none of them; names the setting, its value and the words.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Config:
        ...     attention: Literal["joint", "one_way"]
        >>> check_choices(Config("oneway"))
        Traceback (most recent call last):
        ValueError: attention ('oneway') must be joint or one_way
    """
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            raise ValueError(f"{name} ({getattr(config, name)!r}) must be {' or '.join(get_args(kind))}")
