"""Words of strangers on a terminal."""

import re

COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Write what a terminal would obey, or could not show, as its code: names and captions may come from anybody.

    Example:
        >>> print(printable("fox\x1b[2J\n.png"))
        fox\x1b[2J\n.png
    """
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
