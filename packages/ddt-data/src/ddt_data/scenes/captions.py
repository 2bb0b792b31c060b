"""Captions: plain English for a scene, true to it, in several phrasings."""

import random
from collections import Counter

from ddt_data.scenes.scene import Scene, SceneObject, between, relation, size_word

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {"fish": "fish"}
TEMPLATES = ("{}", "a picture of {}", "an image of {}", "a drawing of {}", "there {be} {}")


def plural(noun: str) -> str:
    """Return the plural of a noun.

    Example:
        >>> plural("fox"), plural("butterfly"), plural("fish")
        ('foxes', 'butterflies', 'fish')
    """
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def noun_phrase(noun: str, colour: str | None = None, count: int = 1, size: str | None = None) -> str:
    """Name one to eight equal objects, with article or number.

    Example:
        >>> noun_phrase("octopus"), noun_phrase("apple", "blue"), noun_phrase("snail", count=3)
        ('an octopus', 'a blue apple', 'three snails')
    """
    words = [word for word in (size, colour, noun if count == 1 else plural(noun)) if word]
    first = NUMBERS[count] if count > 1 else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([first, *words])


def enumerate_phrases(phrases: list[str]) -> str:
    """Join phrases as in "a fox, a bell and a key"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def caption(
    scene: Scene,
    rng: random.Random,
    style_words: float = 0.3,
    background_words: float = 0.3,
    relation_words: float = 0.6,
    size_words: float = 0.0,
    image_size: int = 64,
) -> str:
    """Write a caption of a scene, one line without a full stop.

    Names every object with its number and, where tinted, its colour; order and phrasing are drawn.

    Args:
        style_words: Probability of "in the noto style".
        background_words: Probability of "on a black background".
        relation_words: Probability of "left of", "right of", "above" or "below" where there are two different objects,
            and of "between" where there are three and one is.
        size_words: Probability of "large" and "small" where they apply.
        image_size: Side of the picture in pixels, for the size words.

    Example:
        >>> from ddt_data import Scene, SceneObject
        >>> fox = SceneObject("fox", "noto", "blue", x=0, y=20, size=20)
        >>> bell = SceneObject("bell", "noto", None, x=40, y=20, size=20)
        >>> scene = Scene("black", (fox, bell))
        >>> caption(scene, random.Random(3), background_words=1.0)
        'there is a blue fox left of a bell on a black background'
    """
    objects = rng.sample(scene.objects, len(scene.objects))
    sized = size_words > 0 and rng.random() < size_words
    groups = Counter((t.noun, t.colour, size_word(t.size / image_size) if sized else None) for t in objects)
    phrases = [noun_phrase(noun, colour, count, size) for (noun, colour, size), count in groups.items()]
    said = enumerate_phrases(phrases)
    if len(objects) == len(scene.counts) == 2 and rng.random() < relation_words:
        where = relation(*objects)
        said = f"{phrases[0]} {where} {phrases[1]}" if where else said
    middle = _middle(objects)
    if middle is not None and rng.random() < relation_words:
        said = f"{phrases.pop(middle)} between {' and '.join(phrases)}"
    be = "is" if next(iter(groups.values())) == 1 else "are"
    said = rng.choice(TEMPLATES).format(said, be=be)
    if rng.random() < background_words:
        said += f" on a {scene.background} background"
    if rng.random() < style_words:
        said += f" in the {scene.objects[0].style} style"
    return said


def _middle(objects: list[SceneObject]) -> int | None:
    """Return which of three different objects lies between the others, None if none does."""
    if len(objects) != 3 or len({thing.noun for thing in objects}) != 3:
        return None
    return next((i for i in range(3) if between(objects[i], *objects[:i], *objects[i + 1 :])), None)
