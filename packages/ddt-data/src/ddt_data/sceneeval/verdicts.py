"""Verdicts: whether a picture shows what was asked, judged strictly from what is seen in it."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddt_data.sceneeval.judge import Seen
from ddt_data.sceneeval.prompts import Asked, Prompt
from ddt_data.scenes.nouns import BACKGROUNDS
from ddt_data.scenes.scene import LARGE, RELATIONS, SMALL, Scene, lies_between, side_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture is right, and if not, why."""

    right: bool
    why: str = ""


def verdict(prompt: Prompt, seen: list[Seen]) -> Verdict:
    """Score what `Judge.read` has seen in one picture, strictly.

    Returns:
        Right if the nouns with their numbers are exactly those asked for and each has the colour, the size and the
        place asked for.

    Example:
        >>> from ddt_data.sceneeval.prompts import Asked
        >>> verdict(Prompt("", "counting", "two foxes", (Asked("fox", 2),)), [Seen("fox", "blue", 0.2, 0.5, 0.3, 0.9)])
        Verdict(right=False, why='1 fox instead of 2')
    """
    found = Counter(thing.noun for thing in seen)
    for item in prompt.asked:
        if found[item.noun] != item.count:
            return Verdict(False, f"{found[item.noun]} {item.noun} instead of {item.count}")
    for noun in found - Counter({item.noun: item.count for item in prompt.asked}):
        return Verdict(False, f"{noun} that nobody asked for")
    groups = [[thing for thing in seen if thing.noun == item.noun] for item in prompt.asked]
    for item, group in zip(prompt.asked, groups, strict=True):
        for thing in group:
            if item.colour and thing.colour != item.colour:
                return Verdict(False, f"{item.noun} is {thing.colour}")
            if item.size and (thing.size > (SMALL + LARGE) / 2) != (item.size == "large"):
                return Verdict(False, f"{item.noun} is not {item.size}")
    centres = [(group[0].x, group[0].y) for group in groups]
    if prompt.relation == "between" and not lies_between(*centres, 0.35):
        return Verdict(False, f"{prompt.asked[0].noun} is not between the others")
    if prompt.relation in RELATIONS and (where := side_of(*centres)) != prompt.relation:
        return Verdict(False, f"{prompt.asked[0].noun} is {where} the {prompt.asked[1].noun}")
    return Verdict(True)


def credit(prompt: Prompt, seen: list[Seen]) -> float:
    """Return the share of what was asked for that a picture shows, 0 to 1; 1 where `verdict` finds it right.

    Counted are each noun with its number, that there is nothing else, colours and sizes of what is there, and the
    place. What is right in part can be learned from where nothing is right yet.

    Example:
        >>> prompt = Prompt("", "two", "a fox and a bell", (Asked("fox"), Asked("bell")))
        >>> round(credit(prompt, [Seen("fox", "blue", 0.2, 0.5, 0.3, 0.9)]), 2)
        0.67
    """
    found = Counter(thing.noun for thing in seen)
    asked = Counter({item.noun: item.count for item in prompt.asked})
    points = [float(found[item.noun] == item.count) for item in prompt.asked]
    points.append(float(not found - asked))
    for item in prompt.asked:
        group = [thing for thing in seen if thing.noun == item.noun]
        if item.colour:
            points.append(sum(thing.colour == item.colour for thing in group) / max(len(group), 1))
        if item.size:
            large = item.size == "large"
            points.append(sum((thing.size > (SMALL + LARGE) / 2) == large for thing in group) / max(len(group), 1))
    if prompt.relation:
        plain = tuple(Asked(item.noun, item.count) for item in prompt.asked)
        points.append(float(verdict(replace(prompt, asked=plain), seen).right))
    return sum(points) / len(points)


def shows(scene: Scene, seen: list[Seen], picture: NDArray[np.uint8]) -> Verdict:
    """Return whether a picture shows a scene: its things, their tints and places, and its background.

    Args:
        scene: The truth; its coordinates are pixels of the picture.
        seen: What `Judge.read` lists for the picture.
        picture: uint8 [H, W, 3], of which the rim tells the background.

    Returns:
        Right if the nouns with their numbers are the same, each thing has a seen one of its noun within an eighth of
        the side, tinted ones have their colour, and the background is the scene's. Natural colours are not checked.
    """
    things, rest = scene.objects, list(seen)
    if Counter(t.noun for t in seen) != scene.counts:
        missing = scene.counts - Counter(t.noun for t in seen)
        return Verdict(False, f"no {next(iter(missing))}" if missing else "something that does not belong there")
    for thing in things:
        x, y = (c / picture.shape[0] for c in thing.centre)
        near = min((t for t in rest if t.noun == thing.noun), key=lambda t: max(abs(t.x - x), abs(t.y - y)))
        if max(abs(near.x - x), abs(near.y - y)) > 0.125:
            return Verdict(False, f"{thing.noun} is elsewhere")
        if thing.colour and near.colour != thing.colour:
            return Verdict(False, f"{thing.noun} is {near.colour}")
        rest.remove(near)
    if (background := background_of(picture)) != scene.background:
        return Verdict(False, f"background is {background}")
    return Verdict(True)


def background_of(picture: NDArray[np.uint8]) -> str:
    """Return the background of a picture uint8 [H, W, 3]: the named colour nearest to the median of its rim.

    Example:
        >>> background_of(np.full((8, 8, 3), 255, np.uint8))
        'white'
    """
    rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    colour = np.median(rim, axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(colour - BACKGROUNDS[name]).sum()))
