"""Parse captions: from the closed grammar of `caption` back to what it says."""

import re
from collections import Counter
from dataclasses import dataclass, field

from ddt_data.scenes.captions import NUMBERS, TEMPLATES, plural
from ddt_data.scenes.nouns import BACKGROUNDS, COLOURS, NOUNS
from ddt_data.scenes.scene import RELATIONS, Scene, between, relation

SINGULAR = {plural(noun): noun for noun in NOUNS} | {noun: noun for noun in NOUNS}
OPENINGS = re.compile(
    "|".join(f"^{re.escape(t.split('{}')[0]).replace(re.escape('{be}'), '(?:is|are)')}" for t in TEMPLATES[1:])
)


@dataclass(frozen=True)
class Said:
    """What a caption says; parts that cannot be understood are left out."""

    things: Counter[tuple[str, str | None]] = field(default_factory=Counter)  # how many of each (noun, colour)
    relation: tuple[str, ...] | None = None  # (noun, "left of", noun), or (noun, "between", noun, noun)
    background: str | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many things there are of each noun."""
        return Counter(noun for noun, _ in self.things.elements())


def parse_caption(text: str) -> Said:
    """Parse a caption as far as it follows the grammar of `ddt_data.caption`; other words are passed over.

    Example:
        >>> parse_caption("a drawing of two blue foxes and a bell on a black background").things
        Counter({('fox', 'blue'): 2, ('bell', None): 1})
    """
    text = " ".join(text.lower().strip(" .").split())
    text = re.sub(r" in the \w+ style$", "", text)
    background = None
    if found := re.search(r" on an? (\w+) background$", text):
        background = found[1] if found[1] in BACKGROUNDS else None
        text = text[: found.start()]
    text = OPENINGS.sub("", text)
    where, parts = None, [text]
    for name in (*RELATIONS, "between"):
        if f" {name} " in text:
            where, parts = name, text.split(f" {name} ", 1)
    phrases = [_phrase(piece) for part in parts for piece in re.split(r", | and ", part)]
    understood = [phrase for phrase in phrases if phrase]
    things: Counter[tuple[str, str | None]] = Counter()
    for noun, colour, number in understood:
        things[noun, colour] += number
    nouns = [noun for noun, _, _ in understood]
    if where and len(nouns) == len(phrases) == (3 if where == "between" else 2):
        return Said(things, (nouns[0], where, *sorted(nouns[1:])), background)
    return Said(things, None, background)


def _phrase(text: str) -> tuple[str, str | None, int] | None:
    """Return noun, colour and number of "two blue foxes"."""
    words = text.split()
    if not words or words[-1] not in SINGULAR:
        return None
    number = NUMBERS.index(words[0]) if words[0] in NUMBERS else 1
    return SINGULAR[words[-1]], next((word for word in words if word in COLOURS), None), number


def true_relations(scene: Scene) -> set[tuple[str, ...]]:
    """Return what may be said of where the things of a scene lie, both ways round, where a caption may say it."""
    things = scene.objects
    if len(things) != len(scene.counts):
        return set()
    if len(things) == 2:
        first, second = things
        where = relation(first, second)
        return {(first.noun, where, second.noun), (second.noun, RELATIONS[where], first.noun)} if where else set()
    if len(things) != 3:
        return set()
    turns = (things, (things[1], things[0], things[2]), (things[2], *things[:2]))
    return {(a.noun, "between", *sorted((b.noun, c.noun))) for a, b, c in turns if between(a, b, c)}


def what_it_shows(scene: Scene) -> Counter[tuple[str, str | None]]:
    """Count the things of each (noun, colour) in a scene; colour None for natural colours."""
    return Counter((thing.noun, thing.colour) for thing in scene.objects)
