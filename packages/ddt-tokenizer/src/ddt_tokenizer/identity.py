"""What a fingerprint covers of a group of settings."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any


def identity(config: Any, first: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass that are named in `first`, and those that are not at their defaults.

    `first` are the settings of the first checkpoints. Later ones count only where they are used, so that a fingerprint,
    which id shards and decoders carry, outlives new settings.

    Example:
        >>> from ddt_tokenizer.latents import LatentConfig
        >>> identity(LatentConfig(scale=2.0), first=["channels"])
        {'channels': 3, 'scale': 2.0}
    """
    return {
        field.name: value
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default or field.name in first
    }
