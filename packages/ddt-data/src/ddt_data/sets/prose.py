"""Plain sentences about the things that the sprites show, for text without pictures."""

from importlib.resources import files


def prose() -> tuple[str, ...]:
    """Read the embedded sentences, about 160, written for this project about nouns, colours and places of the scenes.

    Example:
        >>> prose()[0]
        'An apple grows on a tree and is picked in autumn.'
    """
    return tuple(files("ddt_data.sets").joinpath("prose.txt").read_text(encoding="utf-8").splitlines())
