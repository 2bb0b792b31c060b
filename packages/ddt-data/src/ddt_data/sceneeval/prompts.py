"""SceneEval: 540 fixed prompts in six categories, scored strictly against what a judge sees.

After GenEval (arXiv:2310.11513), with scenes whose truth is exact instead of photographs. A picture is right if it
shows exactly the things asked for and nothing else, in the colours, sizes and places asked for.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import combinations, permutations, product
from pathlib import Path

from ddt_data.scenes.captions import enumerate_phrases, noun_phrase
from ddt_data.scenes.config import SceneConfig
from ddt_data.scenes.scene import RELATIONS, Scene, SceneGenerator, SceneObject, between, combine, relation, size_word
from ddt_data.scenes.splits import is_held_out

LEVELS = ("tiny", "standard", "hard")
# Category: prompts of it. "tiny" has fewer where there are no more.
CATEGORIES = {"single": 40, "two": 100, "counting": 100, "colour": 100, "position": 100, "attribution": 100}
HARD_CATEGORIES = {"groups": 40, "many": 100, "counting": 100, "size": 100, "between": 100, "attribution": 100}
SEED = 0  # of the fixed prompts


@dataclass(frozen=True, slots=True)
class Asked:
    """Equal things that a prompt asks for."""

    noun: str
    count: int = 1
    colour: str | None = None  # None: any
    size: str | None = None  # "small", "large"; None: any


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to draw, in words and exactly."""

    key: str  # such as "standard-two-017"
    category: str
    text: str
    asked: tuple[Asked, ...]
    relation: str | None = None  # of the first to the second: one of `RELATIONS`; or "between" the second and third
    seen: bool = True  # no combination in it is held out from training


def level_config(level: str) -> SceneConfig:
    """Return what scenes of a level hold: "tiny" (32 px, the demo's), "standard" (64 px), "hard" (128 px, crowds).

    Raises:
        ValueError: If the level is unknown.

    Example:
        >>> level_config("hard").image_size
        128
    """
    if level not in LEVELS:
        raise ValueError(f"level ({level!r}) must be one of: {', '.join(LEVELS)}")
    return {"tiny": SceneConfig.tiny, "standard": SceneConfig, "hard": SceneConfig.hard}[level]()


def canvas_of(level: str) -> int:
    """Return the side in pixels at which a judge reads pictures of a level."""
    return 128 if level == "hard" else 64


def prompts_file(level: str) -> Path:
    """Return the path of the fixed prompts of a level, JSON lines."""
    level_config(level)
    return Path(str(files("ddt_data.sceneeval").joinpath("levels", f"{level}.jsonl")))


def prompts_hash(level: str) -> str:
    """Hash the fixed prompts of a level, 16 hex digits, for the protocol of a score."""
    return hashlib.sha256(prompts_file(level).read_bytes()).hexdigest()[:16]


@cache
def load_prompts(level: str = "standard") -> tuple[Prompt, ...]:
    """Read the fixed prompts of a level.

    Raises:
        ValueError: If the level is unknown.

    Example:
        >>> prompts = load_prompts("standard")
        >>> len(prompts), prompts[0].category
        (540, 'single')
    """
    rows = [json.loads(line) for line in prompts_file(level).read_text().splitlines()]
    return tuple(Prompt(**row | {"asked": tuple(Asked(**item) for item in row["asked"])}) for row in rows)


def make_prompts(level: str) -> list[Prompt]:
    """Draw the prompts of a level from the fixed seed; `load_prompts` reads what this once wrote.

    All prompts differ. In each category half of them hold a combination that training never shows, as far as there
    are so many, and the other half hold none.
    """
    config = level_config(level)
    prompts = []
    for category, wanted in (HARD_CATEGORIES if level == "hard" else CATEGORIES).items():
        rng = random.Random(f"sceneeval {SEED} {level} {category}")
        found: dict[bool, dict[tuple, Prompt]] = {True: {}, False: {}}
        for asked, where in _candidates(category, config, rng):
            prompt = _prompt(category, asked, where)
            found[prompt.seen].setdefault((*sorted(map(str, asked)), where), prompt)
            if min(len(found[True]), len(found[False])) >= wanted:
                break
        unseen = list(found[False].values())[: wanted // 2]
        chosen = list(found[True].values())[: wanted - len(unseen)] + unseen
        prompts += [replace(prompt, key=f"{level}-{category}-{i:03d}") for i, prompt in enumerate(chosen)]
    return prompts


@cache
def training_prompts(level: str = "standard", most: int = 1000) -> tuple[Prompt, ...]:
    """Draw prompts to learn from, at most `most` of a category: none of the fixed ones, no combination held out.

    A category all of whose prompts are fixed ones, such as the single things of "tiny", has none.

    Raises:
        ValueError: If the level is unknown.

    Example:
        >>> sorted({prompt.category for prompt in training_prompts("tiny")})
        ['attribution', 'position', 'two']
    """
    config, fixed = level_config(level), {prompt.text for prompt in load_prompts(level)}
    prompts = []
    for category in HARD_CATEGORIES if level == "hard" else CATEGORIES:
        rng = random.Random(f"training prompts {level} {category}")
        drawn = (_prompt(category, *candidate) for candidate in _candidates(category, config, rng))
        new = {prompt.text: prompt for prompt in drawn if prompt.seen and prompt.text not in fixed}
        prompts += [
            replace(prompt, key=f"{level}-training-{category}-{i:04d}")
            for i, prompt in enumerate(list(new.values())[:most])
        ]
    return tuple(prompts)


def write_prompts(level: str, path: Path) -> None:
    """Write the prompts of a level as JSON lines."""

    def brief(fields: list[tuple]) -> dict:
        return {name: value for name, value in fields if value is not None}

    lines = (json.dumps(asdict(prompt, dict_factory=brief)) for prompt in make_prompts(level))
    path.write_text("".join(f"{line}\n" for line in lines))


def _candidates(
    category: str, config: SceneConfig, rng: random.Random
) -> Iterator[tuple[tuple[Asked, ...], str | None]]:
    """Go through what may be asked in a category, in random order: all of it, or 40,000 draws where that is more."""
    nouns, colours = config.nouns, config.colours
    if category == "single":
        options = [((Asked(noun),), None) for noun in nouns]
    elif category == "two":
        options = [((Asked(a), Asked(b)), None) for a, b in combinations(nouns, 2)]
    elif category == "counting":
        counts = range(5, 9) if config.max_objects > 4 else range(2, max(3, config.max_objects + 1))
        options = [((Asked(noun, count),), None) for noun, count in product(nouns, counts)]
    elif category == "colour":
        options = [((Asked(noun, colour=colour),), None) for noun, colour in product(nouns, colours)]
    elif category == "position":
        options = [((Asked(a), Asked(b)), where) for (a, b), where in product(permutations(nouns, 2), RELATIONS)]
    elif category == "size":
        options = [((Asked(a, size="large"), Asked(b, size="small")), None) for a, b in permutations(nouns, 2)]
    else:
        for _ in range(40_000):
            yield _drawn(category, config, rng)
        return
    for asked, where in rng.sample(options, len(options)):
        yield tuple(rng.sample(asked, len(asked))) if where is None else asked, where


def _drawn(category: str, config: SceneConfig, rng: random.Random) -> tuple[tuple[Asked, ...], str | None]:
    if category == "attribution":
        number = 3 if config.max_objects > 4 else 2
        nouns, colours = rng.sample(config.nouns, number), rng.sample(config.colours, number)
        return tuple(Asked(noun, colour=colour) for noun, colour in zip(nouns, colours, strict=True)), None
    if category == "between":
        return tuple(Asked(noun) for noun in rng.sample(config.nouns, 3)), "between"
    if category == "many":
        return tuple(Asked(noun) for noun in rng.sample(config.nouns, rng.randint(5, config.max_objects))), None
    first, second = rng.sample(config.nouns, 2)  # groups
    return (Asked(first, rng.randint(2, 4)), Asked(second, rng.randint(2, 4))), None


def _prompt(category: str, asked: tuple[Asked, ...], where: str | None) -> Prompt:
    phrases = [noun_phrase(item.noun, item.colour, item.count, item.size) for item in asked]
    if where == "between":
        text = f"{phrases[0]} between {phrases[1]} and {phrases[2]}"
    elif where:
        text = f"{phrases[0]} {where} {phrases[1]}"
    else:
        text = enumerate_phrases(phrases)
    coloured, counts = ((item.noun, item.colour) for item in asked), {item.noun: item.count for item in asked}
    names = combine(coloured, counts, where if where in RELATIONS else None)
    return Prompt("", category, text, asked, where, not any(map(is_held_out, names)))


def scene_for(prompt: Prompt, config: SceneConfig, seed: int) -> Scene:
    """Draw a scene of exactly what a prompt of its level asks, the rest at random: a picture for the judge's ceiling.

    Example:
        >>> prompt = load_prompts("standard")[0]
        >>> scene = scene_for(prompt, level_config("standard"), seed=0)
        >>> scene.counts == {prompt.asked[0].noun: 1}
        True
    """
    rng = random.Random(f"scene {prompt.key} {seed}")
    generator = SceneGenerator(config, seed=0)
    colours = {item.colour for item in prompt.asked}
    background = rng.choice([name for name in config.backgrounds if name not in colours])
    style = rng.choice(config.styles)
    things = [
        (item, item.colour or generator.colour(rng, background)) for item in prompt.asked for _ in range(item.count)
    ]
    number = len(things)
    layout = "single" if number == 1 else "two" if number == 2 == len(prompt.asked) else "count"
    while True:
        boxes, fits, objects = generator.boxes(rng, layout, number), True, []
        for (item, colour), box in zip(things, boxes, strict=True):
            objects.append(SceneObject(item.noun, style, colour, *box))
            fits = fits and item.size in (None, size_word(objects[-1].size / config.image_size))
        if prompt.relation:
            fits = fits and (
                between(*objects) if prompt.relation == "between" else relation(*objects) == prompt.relation
            )
        if fits:
            return Scene(background, tuple(objects))


def contradict(prompt: Prompt, kind: str, config: SceneConfig, rng: random.Random) -> Prompt | None:
    """Change one thing in a prompt, so that a picture of the old one is wrong; None where there is no such thing.

    Args:
        kind: "noun", "count", "colour", "relation" or "size".
        config: Nouns and colours to take from.

    Example:
        >>> prompt = Prompt("", "counting", "two foxes", (Asked("fox", 2),))
        >>> contradict(prompt, "count", SceneConfig(), random.Random(0)).text
        'three foxes'
    """
    asked, where = list(prompt.asked), prompt.relation
    i = rng.randrange(len(asked))
    item = asked[i]
    if kind == "noun":
        asked[i] = replace(item, noun=rng.choice([n for n in config.nouns if n not in {a.noun for a in asked}]))
    elif kind == "count":
        steps = [step for step in (-1, 1) if 1 <= item.count + step <= 8]
        asked[i] = replace(item, count=item.count + rng.choice(steps))
        if prompt.relation:
            return None
    elif kind == "colour" and item.colour:
        asked[i] = replace(item, colour=rng.choice([c for c in config.colours if c != item.colour]))
    elif kind == "relation" and where in RELATIONS:
        where = rng.choice([other for other in RELATIONS if other != where])
    elif kind == "relation" and where == "between":
        asked = [asked[1], asked[0], asked[2]]
    elif kind == "size" and item.size:
        asked[i] = replace(item, size="small" if item.size == "large" else "large")
    else:
        return None
    return _prompt(prompt.category, tuple(asked), where)
