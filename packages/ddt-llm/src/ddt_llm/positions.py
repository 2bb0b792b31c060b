"""How many positions a language model has."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAMES = ("max_position_embeddings", "max_seq_len")  # the second is MPT's


def most_positions(config: "PretrainedConfig") -> int | None:
    """Return the most tokens that a model was made to see, None if there is no limit.

    Example:
        >>> from transformers import LlamaConfig, MambaConfig
        >>> most_positions(LlamaConfig(max_position_embeddings=128)), most_positions(MambaConfig())
        (128, None)
    """
    config = config.get_text_config()
    limits = [limit for name in NAMES if (limit := getattr(config, name, None) or 0) > 0]
    return limits[0] if limits else None
