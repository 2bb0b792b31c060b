"""Questions about a scene with short exact answers, balanced so that guessing blind does not pay."""

import random
from dataclasses import dataclass

from ddt_data.scenes.captions import NUMBERS, noun_phrase, plural
from ddt_data.scenes.config import LAYOUTS, SceneConfig
from ddt_data.scenes.scene import RELATIONS, Scene, SceneObject, place, relation

QUESTION_KINDS = ("what", "how many", "colour", "where", "yes/no", "background")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer of one or two words, in lower case."""

    kind: str  # one of QUESTION_KINDS
    question: str
    answer: str


def make_questions(scene: Scene, config: SceneConfig, rng: random.Random, count: int) -> list[Question]:
    """Draw different questions about a scene, of different kinds as far as the scene allows them.

    Where an answer can be chosen (yes or no, zero or one) it is drawn first; the others follow the generator's uniform
    choices of nouns, colours and places.

    Args:
        config: What the scene was drawn from.
        count: How many at most; the scene may not have as many.

    Example:
        >>> from ddt_data import SceneGenerator
        >>> config = SceneConfig()
        >>> make_questions(SceneGenerator(config, seed=0)[0], config, random.Random(0), count=1)[0].question
        'where is the fish?'
    """
    kinds = rng.sample(QUESTION_KINDS, len(QUESTION_KINDS))
    questions: dict[str, Question] = {}
    for kind in kinds * count:
        if len(questions) == count:
            break
        drawn = _DRAW[kind](scene, config, rng)
        if drawn and drawn[0] not in questions:
            questions[drawn[0]] = Question(kind, *drawn)
    return list(questions.values())


def _absent(scene: Scene, config: SceneConfig, rng: random.Random) -> str | None:
    nouns = [noun for noun in config.nouns if noun not in scene.counts]
    return rng.choice(nouns) if nouns else None


def _related(scene: Scene, rng: random.Random) -> tuple[SceneObject, str, SceneObject] | None:
    """Return two different objects, in drawn order, and how they lie, where that is clear."""
    if len(scene.objects) != 2 or len(scene.counts) != 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    where = relation(first, second)
    return (first, where, second) if where else None


def _what(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    if len(scene.counts) == 1 < len(scene.objects):
        return rng.choice(("what are these?", "what do you see?")), plural(scene.objects[0].noun)
    if len(scene.objects) == 1:
        return rng.choice(("what is this?", "what is in the picture?", "what do you see?")), scene.objects[0].noun
    if related := _related(scene, rng):
        first, where, second = related
        return f"what is {where} the {second.noun}?", first.noun
    return None


def _how_many(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    noun, number = scene.counts.most_common(1)[0]
    if number == 1:
        # Zero and one could be asked of every scene; ask of so many that each number is the answer equally often.
        weights = config.layout_weights
        counting = weights[LAYOUTS.index("count")] / sum(weights)
        if 0 < counting < 1 and rng.random() >= 2 * counting / (1 - counting) / (config.max_objects - 1):
            return None
        noun, number = rng.choice(((rng.choice(scene.objects).noun, 1), (_absent(scene, config, rng), 0)))
    return (f"how many {plural(noun)} are there?", NUMBERS[number]) if noun else None


def _colour(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    thing = rng.choice(scene.objects)
    if thing.colour is None:
        return None
    if scene.counts[thing.noun] == 1:
        return f"{rng.choice(('what', 'which'))} colour is the {thing.noun}?", thing.colour
    if len({other.colour for other in scene.objects if other.noun == thing.noun}) == 1:
        return f"{rng.choice(('what', 'which'))} colour are the {plural(thing.noun)}?", thing.colour
    return None


def _where(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    if related := _related(scene, rng):
        first, where, second = related
        options = rng.sample((where, RELATIONS[where]), 2)
        asked = " or ".join(option.removesuffix(" of") for option in options)
        of = " of" if where.endswith(" of") else ""
        return f"is the {first.noun} {asked}{of} the {second.noun}?", where.removesuffix(" of")
    if len(scene.objects) == 1 and (corner := place(scene.objects[0], config.image_size)):
        return f"where is the {scene.objects[0].noun}?", corner
    return None


def _yes_no(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    yes = rng.random() < 0.5
    answer = "yes" if yes else "no"
    about = rng.choice(("presence", "colour", "relation"))
    thing = rng.choice(scene.objects)
    if about == "colour" and thing.colour and scene.counts[thing.noun] == 1 and len(config.colours) > 1:
        colour = thing.colour if yes else rng.choice([c for c in config.colours if c != thing.colour])
        return f"is the {thing.noun} {colour}?", answer
    if about == "relation" and (related := _related(scene, rng)):
        first, where, second = related
        return f"is the {first.noun} {where if yes else RELATIONS[where]} the {second.noun}?", answer
    noun = thing.noun if yes else _absent(scene, config, rng)
    return (f"is there {noun_phrase(noun)}?", answer) if noun else None


def _background(scene: Scene, config: SceneConfig, rng: random.Random) -> tuple[str, str] | None:
    return rng.choice(("what colour is the background?", "which colour is the background?")), scene.background


_DRAW = dict(zip(QUESTION_KINDS, (_what, _how_many, _colour, _where, _yes_no, _background), strict=True))
