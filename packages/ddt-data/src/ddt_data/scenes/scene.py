"""Scenes: a few sprites on a plain background, with exact truth, deterministic by seed.

A scene is one of four layouts: one object, two different ones side by side or one above the other, several equal ones
(counting), or three and more different ones (mixed). Objects never overlap.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ddt_data.limits import Seed, check_setting
from ddt_data.scenes.config import LAYOUTS, SceneConfig
from ddt_data.scenes.nouns import BACKGROUNDS
from ddt_data.scenes.splits import is_held_out
from ddt_data.scenes.sprites import sprite

RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}  # relation: its inverse
SPLITS = ("train", "unseen")
SMALL, LARGE = 0.17, 0.27  # up to, from: shares of the side


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One sprite on the canvas; `x`, `y` are the left and top pixel of its square, `size` the side in pixels."""

    noun: str
    style: str
    colour: str | None  # None: the natural colours
    x: int
    y: int
    size: int

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the square, pixels from the left and from the top."""
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and the objects on it; the truth from which pictures, captions and answers are made."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def counts(self) -> Counter[str]:
        """How many objects there are of each noun."""
        return Counter(thing.noun for thing in self.objects)


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Return where the first object lies as seen from the second, by the axis along which they are further apart.

    Returns:
        One of `RELATIONS`, or None where the two axes are too close to call (within a factor 1.25).

    Example:
        >>> fox, bell = SceneObject("fox", "noto", None, 0, 4, 20), SceneObject("bell", "noto", None, 40, 0, 20)
        >>> relation(fox, bell)
        'left of'
    """
    near, far = sorted(abs(a - b) for a, b in zip(first.centre, second.centre, strict=True))
    return None if far < 1.25 * near or far == 0 else side_of(first.centre, second.centre)


def side_of(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Return where the first centre (x, y) lies as seen from the second: one of `RELATIONS`, by the larger offset."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def place(thing: SceneObject, image_size: int) -> str | None:
    """Return the quarter of the picture in which an object lies.

    Returns:
        One of "top left", "top right", "bottom left", "bottom right"; None where its centre is within a sixteenth of
        the side of a middle line.

    Example:
        >>> place(SceneObject("fox", "noto", None, 40, 2, 20), image_size=64)
        'top right'
    """
    dx, dy = (c - image_size / 2 for c in thing.centre)
    if min(abs(dx), abs(dy)) < image_size / 16:
        return None
    return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"


def between(middle: SceneObject, first: SceneObject, second: SceneObject, tolerance: float = 0.25) -> bool:
    """Return whether an object lies between two others: near the line from one to the other, and near its middle.

    Args:
        tolerance: How far from the middle of the line it may be, as a share of the line's length.

    Example:
        >>> fox, bell, key = (SceneObject("fox", "noto", None, x, 0, 20) for x in (40, 0, 80))
        >>> between(fox, bell, key), between(bell, fox, key)
        (True, False)
    """
    return lies_between(middle.centre, first.centre, second.centre, tolerance)


def lies_between(
    middle: tuple[float, float], first: tuple[float, float], second: tuple[float, float], tolerance: float
) -> bool:
    """Return what `between` does, for centres (x, y)."""
    (x, y), (x0, y0), (x1, y1) = middle, first, second
    length = math.hypot(x1 - x0, y1 - y0)
    return math.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2) <= tolerance * length


def size_word(share: float) -> str | None:
    """Return "large" for a share of the picture's side from 0.27, "small" for one up to 0.17, else None.

    Example:
        >>> size_word(0.3), size_word(0.2)
        ('large', None)
    """
    return "large" if share >= LARGE else "small" if share <= SMALL else None


@lru_cache(maxsize=32)
def _blank(background: str, image_size: int) -> NDArray[np.uint8]:
    return np.full((image_size, image_size, 3), BACKGROUNDS[background], np.uint8)


@lru_cache(maxsize=8192)
def _layers(noun: str, style: str, colour: str | None, size: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return what blending needs: the colours of a sprite, rounded for the division by 255; the share that stays."""
    drawn = sprite(noun, style, colour, size).astype(np.uint16)
    kept = np.repeat(255 - drawn[..., 3:], 3, axis=-1)
    return drawn[..., :3] * 255 + 127, kept


def render(scene: Scene, config: SceneConfig, behind: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Draw a scene.

    Args:
        scene: What to draw; its coordinates are pixels of `config.image_size`.
        behind: A picture uint8 [image_size, image_size, 3] instead of the plain background.

    Returns:
        uint8 [image_size, image_size, 3], RGB in 0..255.

    Example:
        >>> config = SceneConfig.tiny()
        >>> render(SceneGenerator(config, seed=0)[7], config).shape
        (32, 32, 3)
    """
    canvas = (_blank(scene.background, config.image_size) if behind is None else behind).copy()
    for thing in scene.objects:
        drawn, kept = _layers(thing.noun, thing.style, thing.colour, thing.size)
        under = canvas[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        under[:] = (drawn + under * kept) // 255
    return canvas


def combinations_of(scene: Scene) -> list[str]:
    """List the combinations that a scene shows: noun pairs, (noun, colour), (noun, count), (noun pair, relation).

    Example:
        >>> combinations_of(Scene("white", (SceneObject("fox", "noto", "blue", 0, 0, 20),)))
        ['colour fox blue']
    """
    where = relation(*scene.objects) if len(scene.objects) == 2 == len(scene.counts) else None
    return combine(((thing.noun, thing.colour) for thing in scene.objects), scene.counts, where)


def combine(coloured: Iterable[tuple[str, str | None]], counts: dict[str, int], where: str | None) -> list[str]:
    """List what `combinations_of` does, from (noun, colour), counts, and how the first noun lies to the second."""
    names = [f"colour {noun} {colour}" for noun, colour in sorted({pair for pair in coloured if pair[1]})]
    names += [f"count {noun} {count}" for noun, count in counts.items() if count > 1]
    names += [f"pair {a} {b}" for a, b in combinations(sorted(counts), 2)]
    if where:
        first, second = counts
        swapped = f"relation {second} {RELATIONS[where]} {first}"
        names.append(f"relation {first} {where} {second}" if first < second else swapped)
    return names


def in_split(scene: Scene, split: str) -> bool:
    """Return whether a scene belongs to a split: "train" shows no held-out combination, "unseen" at least one."""
    return any(is_held_out(name) for name in combinations_of(scene)) == (split == "unseen")


class SceneGenerator:
    """An endless, random-access list of scenes: item i is a function of (config, seed, split, i) alone.

    Args:
        split: "train" never shows a held-out combination, "unseen" always shows one.

    Raises:
        ValueError: If the split or the seed is none, or (on access) the config leaves nothing for it to show.

    Example:
        >>> scenes = SceneGenerator(SceneConfig(), seed=0)
        >>> scenes[3] == scenes[3]
        True
    """

    def __init__(self, config: SceneConfig, seed: int, split: str = "train"):
        if split not in SPLITS:
            raise ValueError(f"split ({split!r}) must be one of: {', '.join(SPLITS)}")
        check_setting("seed", Seed, seed)
        self.config, self.seed, self.split = config, seed, split

    def __getitem__(self, index: int) -> Scene:
        rng = random.Random(f"{self.seed} {self.split} {index}")
        for _ in range(1000):
            scene = self._draw(rng)
            if in_split(scene, self.split):
                return scene
        raise ValueError(
            f"no scene of split {self.split!r} in 1000 tries with {len(self.config.nouns)} nouns and natural_share "
            f"({self.config.natural_share}); allow more nouns, colours or objects"
        )

    def _draw(self, rng: random.Random) -> Scene:
        config = self.config
        background = rng.choice(config.backgrounds)
        style = rng.choice(config.styles)
        layout = rng.choices(LAYOUTS, config.layout_weights)[0]
        if layout == "single":
            nouns = [rng.choice(config.nouns)]
        elif layout == "two":
            nouns = rng.sample(config.nouns, 2)
        elif layout == "count":
            nouns = [rng.choice(config.nouns)] * rng.randint(2, config.max_objects)
        else:
            nouns = rng.sample(config.nouns, rng.randint(3, min(config.max_objects, len(config.nouns))))
        colours = [self.colour(rng, background) for _ in set(nouns)]
        if layout == "count":
            colours *= len(nouns)
        boxes = self.boxes(rng, layout, len(nouns))
        objects = (SceneObject(n, style, c, *box) for n, c, box in zip(nouns, colours, boxes, strict=True))
        return Scene(background, tuple(objects))

    def colour(self, rng: random.Random, background: str) -> str | None:
        """Draw a tint that stands out from the background, or None for natural colours."""
        if rng.random() < self.config.natural_share:
            return None
        return rng.choice([colour for colour in self.config.colours if colour != background] or [None])

    def boxes(self, rng: random.Random, layout: str, count: int) -> list[tuple[int, int, int]]:
        """Draw `count` squares (x, y, size) for one of `LAYOUTS`; they overlap by `config.overlap` at most."""
        side = self.config.image_size
        low, high = (math.floor(side * share) for share in self.config.object_size)
        if count > 1 and self.config.scattered:
            return self._scattered(rng, count, low, high)
        room = side // 2 if count > 1 else side
        sizes = [rng.randint(min(low, room), min(high, room)) for _ in range(count)]
        if layout == "two":
            return self._beside(rng, *sizes)
        cells = rng.sample([(0, 0), (0, room), (room, 0), (room, room)], count) if count > 1 else [(0, 0)]
        return [
            (x + rng.randint(0, room - s), y + rng.randint(0, room - s), s)
            for (x, y), s in zip(cells, sizes, strict=True)
        ]

    def _beside(self, rng: random.Random, first: int, second: int) -> list[tuple[int, int, int]]:
        """Place two squares so that their relation is clear: little apart across the axis that tells it."""
        side = self.config.image_size
        near = rng.randint(0, side - first - second)
        far = rng.randint(near + first, side - second)
        apart = far + second / 2 - near - first / 2
        middle = rng.uniform(first / 2, side - first / 2)
        reach = 0.5 * apart
        low, high = max(middle - reach, second / 2), min(middle + reach, side - second / 2)
        across = rng.uniform(min(low, high), high)
        boxes = [(near, round(middle - first / 2), first), (far, round(across - second / 2), second)]
        if rng.random() < 0.5:
            boxes = [(y, x, size) for x, y, size in boxes]
        return boxes if rng.random() < 0.5 else boxes[::-1]

    def _scattered(self, rng: random.Random, count: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """Place squares anywhere, the largest first; all anew where the last ones find no room."""
        side = self.config.image_size
        while True:
            boxes: list[tuple[int, int, int]] = []
            for size in sorted((rng.randint(low, high) for _ in range(count)), reverse=True):
                for _ in range(30):
                    box = rng.randint(0, side - size), rng.randint(0, side - size), size
                    if all(covered(box, other) <= self.config.overlap for other in boxes):
                        boxes.append(box)
                        break
            if len(boxes) == count:
                return rng.sample(boxes, count)


def covered(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """Return the share of the smaller of two squares (x, y, size) that the other covers."""
    (ax, ay, a_size), (bx, by, b_size) = a, b
    across = min(ax + a_size, bx + b_size) - max(ax, bx)
    down = min(ay + a_size, by + b_size) - max(ay, by)
    return max(0, across) * max(0, down) / min(a_size, b_size) ** 2
