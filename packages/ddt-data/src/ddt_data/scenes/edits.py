"""Edits: an instruction and the scenes before and after it, equal in everything that it does not name."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddt_data.scenes.captions import noun_phrase, plural
from ddt_data.scenes.config import SceneConfig
from ddt_data.scenes.scene import Scene, SceneObject, covered, in_split, place, relation

EDIT_KINDS = ("add", "remove", "replace", "recolour", "move", "background")

PHRASINGS = {
    "add": ("add {new} {where}", "put {new} {where}", "draw {new} {where}"),
    "remove": ("remove {old}", "take {old} away", "erase {old}"),
    "replace": ("replace {old} with {new}", "turn {old} into {new}", "swap {old} for {new}"),
    "recolour": ("make {old} {colour}", "paint {old} {colour}", "change the colour of {old} to {colour}"),
    "move": ("move {old} to the {where}", "put {old} in the {where}", "bring {old} to the {where}"),
    "background": ("change the background to {colour}", "make the background {colour}", "use a {colour} background"),
}
Drawn = tuple[dict[str, str], Scene, Scene] | None  # words of the phrasing, source, target; None where it does not fit


@dataclass(frozen=True, slots=True)
class Edit:
    """What to do, in words, and the scenes before and after."""

    kind: str  # one of EDIT_KINDS
    instruction: str
    source: Scene
    target: Scene


def make_edit(
    scene: Scene, config: SceneConfig, rng: random.Random, split: str = "train", kinds: Sequence[str] = EDIT_KINDS
) -> Edit:
    """Draw an edit from or to a scene.

    Args:
        scene: The source of the edit; for "add" its target, and the source lacks one object.
        config: What the scene was drawn from; new nouns, colours and backgrounds come from it.
        split: "train": neither scene shows a held-out combination. "unseen": the source shows one.

    Returns:
        An edit whose target follows the instruction and leaves everything else as it was. The outcome is the only one
        possible but for "add", which leaves the distance open.

    Raises:
        ValueError: If a kind is unknown, or none of the kinds fits the scene.

    Example:
        >>> from ddt_data import SceneGenerator
        >>> config = SceneConfig()
        >>> make_edit(SceneGenerator(config, seed=0)[0], config, random.Random(1), kinds=["background"]).instruction
        'make the background black'
    """
    if unknown := set(kinds) - set(EDIT_KINDS):
        raise ValueError(f"edit kind {min(unknown)!r} is unknown; choose from: {', '.join(EDIT_KINDS)}")
    # Only scenes of several objects can add and remove: there they are tried first more often.
    weights = {kind: 3 if kind in ("add", "remove") and len(scene.objects) > 1 else 1 for kind in kinds}
    for kind in sorted(kinds, key=lambda kind: rng.random() ** (1 / weights[kind]), reverse=True):
        for _ in range(20):
            if drawn := _DRAW[kind](scene, config, rng):
                words, source, target = drawn
                instruction = rng.choice(PHRASINGS[kind]).format(**words)
                if in_split(source, split) and (split == "unseen" or in_split(target, split)):
                    return Edit(kind, instruction, source, target)
    raise ValueError(
        f"no edit of kind {', '.join(kinds)} fits this scene of {len(scene.objects)} objects in split {split!r}; "
        "allow more kinds, or more nouns, colours and backgrounds"
    )


def _the(thing: SceneObject, scene: Scene, rng: random.Random) -> str | None:
    """Refer to one object so that no other is meant, or None where words cannot."""
    if scene.counts[thing.noun] == 1:
        return f"the {thing.colour} {thing.noun}" if thing.colour and rng.random() < 0.5 else f"the {thing.noun}"
    return None


def _with(scene: Scene, old: SceneObject, new: SceneObject | None) -> Scene:
    objects = (new if thing is old else thing for thing in scene.objects)
    return Scene(scene.background, tuple(thing for thing in objects if thing))


def _new_colour(scene: Scene, config: SceneConfig, rng: random.Random, but: str | None = None) -> str | None:
    colours = [colour for colour in config.colours if colour not in (scene.background, but)]
    return rng.choice(colours) if colours else None


def _add(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    new = rng.choice(scene.objects)
    source = _with(scene, new, None)
    if not source.objects or scene.counts[new.noun] > 1:
        return None
    if len(source.objects) == 1:
        side = relation(new, source.objects[0])
        where = f"{side} {_the(source.objects[0], source, rng)}" if side else None
    else:
        corner = place(new, config.image_size)
        where = f"in the {corner}" if corner else None
    if where is None:
        return None
    return {"new": noun_phrase(new.noun, new.colour), "where": where}, source, scene


def _remove(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    old = rng.choice(scene.objects)
    if len(scene.objects) == 1 or not (name := _the(old, scene, rng)):
        return None
    return {"old": name}, scene, _with(scene, old, None)


def _replace(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    old = rng.choice(scene.objects)
    nouns = [noun for noun in config.nouns if noun not in scene.counts]
    if not nouns or not (name := _the(old, scene, rng)):
        return None
    colour = None if rng.random() < config.natural_share else _new_colour(scene, config, rng)
    new = replace(old, noun=rng.choice(nouns), colour=colour)
    return {"old": name, "new": noun_phrase(new.noun, new.colour)}, scene, _with(scene, old, new)


def _recolour(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    old = rng.choice(scene.objects)
    colour = _new_colour(scene, config, rng, but=old.colour)
    alike = len(scene.counts) == 1 < len(scene.objects)
    name = f"the {plural(old.noun)}" if alike else _the(old, scene, rng)
    if not colour or not name:
        return None
    objects = (replace(thing, colour=colour) if thing is old or alike else thing for thing in scene.objects)
    return {"old": name, "colour": colour}, scene, Scene(scene.background, tuple(objects))


def _move(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    """Move an object into a corner, a thirty-second of the side from the edges, or into the very middle."""
    old = rng.choice(scene.objects)
    near = min(config.image_size // 32, config.image_size - old.size)
    far, middle = config.image_size - old.size - near, (config.image_size - old.size) // 2
    goals = {
        "top left": (near, near),
        "top right": (far, near),
        "bottom left": (near, far),
        "bottom right": (far, far),
        "centre": (middle, middle),
    }
    where = rng.choice(list(goals))
    x, y = goals[where]
    new = replace(old, x=x, y=y)
    travelled = max(abs(new.x - old.x), abs(new.y - old.y))
    blocked = any(
        covered((new.x, new.y, new.size), (thing.x, thing.y, thing.size)) for thing in scene.objects if thing is not old
    )
    name = _the(old, scene, rng)
    if blocked or not name or travelled < config.image_size / 8:
        return None
    return {"old": name, "where": where}, scene, _with(scene, old, new)


def _background(scene: Scene, config: SceneConfig, rng: random.Random) -> Drawn:
    taken = {scene.background} | {thing.colour for thing in scene.objects}
    free = [name for name in config.backgrounds if name not in taken]
    if not free:
        return None
    colour = rng.choice(free)
    return {"colour": colour}, scene, replace(scene, background=colour)


_DRAW = dict(zip(EDIT_KINDS, (_add, _remove, _replace, _recolour, _move, _background), strict=True))
