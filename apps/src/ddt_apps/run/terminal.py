"""What a terminal may be sent: text that others wrote moves no cursor and hides nothing."""

import unicodedata

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that show text in another order than it has


def harmless(text: str) -> str:
    """Write control characters, other than line ends and tabs, and bytes that are no UTF-8 as escapes.

    Example:
        >>> harmless("a fox\\x1b[2J \\u00fcber 2 lines\\n")
        'a fox\\\\x1b[2J \u00fcber 2 lines\\n'
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in TURNING):
        return character
    return character.encode("unicode_escape").decode()
