"""Captions are parsed back to exactly what they say."""

import random
from collections import Counter

import pytest

from ddt_data import SceneConfig, SceneGenerator, caption
from ddt_data.scenes.parsing import Said, parse_caption, true_relations, what_it_shows


@pytest.mark.parametrize("config", [SceneConfig(), SceneConfig.tiny(), SceneConfig.hard()], ids=["64", "tiny", "hard"])
def test_every_caption_is_understood(config):
    generator, related, grounds = SceneGenerator(config, seed=4), 0, 0
    for i in range(400):
        scene = generator[i]
        words = {"size_words": config.size_words, "image_size": config.image_size}
        said = parse_caption(caption(scene, random.Random(i), 0.3, 0.5, **words))
        assert said.things == what_it_shows(scene)
        assert said.counts == scene.counts
        assert said.relation is None or said.relation in true_relations(scene)
        assert said.background in (None, scene.background)
        related += said.relation is not None
        grounds += said.background is not None
    assert related and grounds > 100


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("A red fox.", {("fox", "red"): 1}),
        ("there are three octopuses", {("octopus", None): 3}),
        (
            "an image of a fish, two keys and a green butterfly",
            {("fish", None): 1, ("key", None): 2, ("butterfly", "green"): 1},
        ),
        ("a xylophone and a bell", {("bell", None): 1}),
        ("", {}),
        ("on and on", {}),
    ],
)
def test_what_is_understood_and_what_is_passed_over(text, things):
    assert parse_caption(text).things == Counter(things)


def test_relations_are_the_same_both_ways_round():
    assert parse_caption("a fox left of a bell").relation == ("fox", "left of", "bell")
    assert parse_caption("a key between a fox and a bell").relation == ("key", "between", "bell", "fox")
    assert parse_caption("a fox left of a xylophone").relation is None
    assert parse_caption("nothing here") == Said()
