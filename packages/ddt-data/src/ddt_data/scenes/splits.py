"""Which combinations training never sees, by a stable hash of their name."""

import hashlib
from functools import lru_cache


@lru_cache(maxsize=65536)
def is_held_out(name: str) -> bool:
    """Return whether a combination is held out: one name in ten, on every machine and in every version alike.

    Args:
        name: What is combined, such as "pair bell fox" or "colour fox blue".

    Example:
        >>> is_held_out("pair bell fox"), is_held_out("pair fox key")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 10 == 0
