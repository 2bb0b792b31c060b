"""All kinds of quantizer. A new one is a file beside this and its config in `AnyQuantizer`."""

from dataclasses import fields
from typing import Any, get_args

from ddt_tokenizer.quantizers.binary import BinaryConfig
from ddt_tokenizer.quantizers.scalar import ScalarConfig
from ddt_tokenizer.quantizers.vector import VectorConfig

AnyQuantizer = VectorConfig | ScalarConfig | BinaryConfig


def read_settings(kind: str = "vq", **settings: Any) -> AnyQuantizer:
    """Build the config of a kind from the settings that a `config.json` holds.

    In checkpoints of before they are those of all kinds: what other kinds need is left out, and so are sizes that
    follow from other settings.

    Raises:
        ValueError: If the kind is unknown.
        TypeError: If a setting is of no kind.

    Example:
        >>> read_settings(kind="fsq", levels=[8, 5, 5, 5], decay=0.99).codebook_size
        1000
    """
    kinds = {config.kind: config for config in get_args(AnyQuantizer)}
    if kind not in kinds:
        raise ValueError(f"kind ({kind!r}) must be {' or '.join(kinds)}")
    own = {field.name for field in fields(kinds[kind]) if field.init}
    left_out = {field.name for config in kinds.values() for field in fields(config)} - own
    return kinds[kind](**{name: value for name, value in settings.items() if name not in left_out})
