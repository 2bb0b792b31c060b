"""Sprites and scenes: determinism, splits, and the renderer against an obvious one."""

import random
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from ddt_data import (
    BACKGROUNDS,
    COLOURS,
    NOUNS,
    STYLES,
    Scene,
    SceneConfig,
    SceneGenerator,
    SceneObject,
    is_held_out,
    load_sprites,
    relation,
    render,
    sprite,
)
from ddt_data.scenes.scene import RELATIONS, combinations_of

CONFIGS = {"default": SceneConfig(), "tiny": SceneConfig.tiny()}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def test_every_sprite_is_drawn_and_premultiplied():
    sprites = load_sprites(64)
    assert sprites.shape == (len(STYLES), len(NOUNS), 64, 64, 4)
    alpha = sprites[..., 3]
    assert (sprites[..., :3] <= alpha[..., None]).all()
    assert ((alpha > 128).mean(axis=(2, 3)) > 0.1).all()


def test_art_is_under_a_megabyte_and_has_its_notice():
    from importlib.resources import files

    art = {entry.name: entry for entry in files("ddt_data.scenes").joinpath("art").iterdir()}
    assert set(art) == {"NOTICE", *(f"{style}.webp" for style in STYLES)}
    assert sum(len(entry.read_bytes()) for entry in art.values()) < 1_000_000
    assert all(f"{style}.webp" in art["NOTICE"].read_text() for style in STYLES)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_is_nearest_to_its_name_and_keeps_the_shape_of_the_drawing(colour):
    for noun, style in product(NOUNS, STYLES):
        tinted, natural = sprite(noun, style, colour, 32), sprite(noun, style, None, 32)
        assert np.array_equal(tinted[..., 3], natural[..., 3])
        mean = tinted[..., :3].sum((0, 1)) / tinted[..., 3].sum() * 255
        nearest = min(COLOURS, key=lambda name: ((mean - COLOURS[name]) ** 2).sum())
        assert nearest == colour


def slow_render(scene: Scene, config: SceneConfig) -> np.ndarray:
    """The obvious way: one Pillow composite for each object, with straight alpha."""
    canvas = Image.new("RGBA", (config.image_size, config.image_size), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        drawn = sprite(thing.noun, thing.style, thing.colour, thing.size).astype(float)
        alpha = drawn[..., 3:]
        straight = np.rint(drawn[..., :3] * 255 / np.maximum(alpha, 1)).clip(0, 255)
        image = Image.fromarray(np.concatenate([straight, alpha], -1).astype(np.uint8))
        canvas.alpha_composite(image, (thing.x, thing.y))
    return np.asarray(canvas.convert("RGB"))


@each_config
def test_rendering_equals_a_slow_obvious_compositor(config):
    generator = SceneGenerator(config, seed=random.randrange(10**6))
    for index in range(100):
        scene = generator[index]
        difference = render(scene, config).astype(int) - slow_render(scene, config)
        assert np.abs(difference).max() <= 2


@each_config
def test_a_scene_depends_on_seed_split_and_index_alone(config):
    first, again = SceneGenerator(config, seed=5), SceneGenerator(config, seed=5)
    backwards = [again[index] for index in reversed(range(50))][::-1]
    assert [first[index] for index in range(50)] == backwards
    assert SceneGenerator(config, seed=6)[0] != first[0] or SceneGenerator(config, seed=6)[1] != first[1]


def test_scenes_are_the_same_in_every_version():
    assert SceneGenerator(SceneConfig(), seed=0)[0] == Scene(
        background="white", objects=(SceneObject(noun="fish", style="fluent", colour=None, x=31, y=38, size=23),)
    )


@each_config
def test_objects_lie_on_the_canvas_apart_and_off_the_background_colour(config):
    generator = SceneGenerator(config, seed=1)
    for index in range(500):
        scene = generator[index]
        assert 1 <= len(scene.objects) <= config.max_objects
        assert len({thing.style for thing in scene.objects}) == 1
        for thing in scene.objects:
            assert 0 <= thing.x <= config.image_size - thing.size
            assert 0 <= thing.y <= config.image_size - thing.size
            assert thing.colour != scene.background
        for a, b in combinations(scene.objects, 2):
            assert (
                abs(a.centre[0] - b.centre[0]) >= (a.size + b.size) / 2
                or abs(a.centre[1] - b.centre[1]) >= (a.size + b.size) / 2
            )


@each_config
@pytest.mark.parametrize("split", ["train", "unseen"])
def test_splits_share_no_combination_that_is_held_out(config, split):
    generator = SceneGenerator(config, seed=2, split=split)
    for index in range(300):
        held_out = [name for name in combinations_of(generator[index]) if is_held_out(name)]
        assert bool(held_out) == (split == "unseen")


def test_one_combination_in_ten_is_held_out():
    pairs = [f"pair {a} {b}" for a, b in combinations(sorted(NOUNS), 2)]
    colours = [f"colour {noun} {colour}" for noun in NOUNS for colour in COLOURS]
    for names in (pairs, colours):
        assert 0.07 < np.mean([is_held_out(name) for name in names]) < 0.13


def test_the_split_of_a_pair_does_not_depend_on_the_order_of_its_objects():
    scene = SceneGenerator(replace(SceneConfig(), layout_shares=(0, 1, 0, 0)), seed=0)[0]
    assert combinations_of(scene) == combinations_of(Scene(scene.background, scene.objects[::-1]))


def test_two_objects_always_have_a_clear_relation_and_all_four_occur_alike():
    generator = SceneGenerator(replace(SceneConfig(), layout_shares=(0, 1, 0, 0)), seed=3)
    found = [relation(*generator[index].objects) for index in range(1200)]
    assert set(found) == set(RELATIONS)
    assert all(found.count(name) > 0.2 * len(found) for name in RELATIONS)


def test_a_relation_is_the_inverse_of_the_other_way_round():
    rng = random.Random(0)
    for _ in range(200):
        a, b = (SceneObject("fox", "noto", None, rng.randrange(50), rng.randrange(50), 14) for _ in range(2))
        forth, back = relation(a, b), relation(b, a)
        assert (forth and RELATIONS[forth]) == back


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nouns", ("dragon",)),
        ("nouns", ()),
        ("colours", ("mauve",)),
        ("object_size", (0.4, 0.2)),
        ("max_objects", 9),
        ("natural_share", 1.5),
        ("layout_shares", (0, 0, 0, 0)),
        ("image_size", 8),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=field):
        SceneConfig(**{field: value})


def test_an_unknown_split_and_an_empty_one_are_refused():
    with pytest.raises(ValueError, match="split"):
        SceneGenerator(SceneConfig(), 0, "test")
    single = replace(SceneConfig(), max_objects=1, natural_share=1.0)
    with pytest.raises(ValueError, match="natural_share"):
        SceneGenerator(single, 0, "unseen")[0]
