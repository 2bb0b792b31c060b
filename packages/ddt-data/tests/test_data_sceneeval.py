"""SceneEval: fixed prompts, strict verdicts, scenes that fit their prompts."""

import random
from collections import Counter
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from ddt_data import Asked, Prompt, Seen, level_config, load_prompts, render, scene_for, verdict
from ddt_data.sceneeval.prompts import LEVELS, canvas_of, contradict, make_prompts, training_prompts
from ddt_data.sceneeval.verdicts import background_of, credit, shows
from ddt_data.scenes.scene import RELATIONS, in_split

each_level = pytest.mark.parametrize("level", LEVELS)


def ideal(scene, side):
    """What a judge without faults sees."""
    return [
        Seen(t.noun, t.colour or "red", t.centre[0] / side, t.centre[1] / side, t.size / side, 1.0)
        for t in scene.objects
    ]


def test_there_are_540_prompts_in_six_categories():
    for level in ("standard", "hard"):
        counts = Counter(prompt.category for prompt in load_prompts(level))
        assert sorted(counts.values()) == [40, 100, 100, 100, 100, 100]


@each_level
def test_the_file_of_prompts_is_what_the_fixed_seed_gives(level):
    assert list(load_prompts(level)) == make_prompts(level)
    assert len({prompt.key for prompt in load_prompts(level)}) == len(load_prompts(level))
    meanings = {
        (tuple(sorted(map(str, p.asked))), p.relation, str(p.asked[0]) if p.relation else "")
        for p in load_prompts(level)
    }
    assert len(meanings) == len(load_prompts(level)), "two prompts ask for the same"


@each_level
def test_a_scene_for_a_prompt_is_right_and_in_its_split(level):
    config = level_config(level)
    for prompt in random.Random(0).sample(load_prompts(level), 120):
        scene = scene_for(prompt, config, seed=3)
        assert verdict(prompt, ideal(scene, config.image_size)).right, prompt
        assert scene == scene_for(prompt, config, seed=3)
        if not prompt.seen:
            assert in_split(scene, "unseen") or prompt.category == "counting", prompt
    assert scene_for(prompt, config, 0) != scene_for(prompt, config, 1)


@each_level
@pytest.mark.parametrize("kind", ["noun", "count", "colour", "relation", "size"])
def test_a_contradicted_prompt_is_never_right(level, kind):
    config, rng, tried = level_config(level), random.Random(1), 0
    for prompt in random.Random(2).sample(load_prompts(level), 150):
        if wrong := contradict(prompt, kind, config, rng):
            tried += 1
            scene = scene_for(prompt, config, seed=5)
            assert not verdict(wrong, ideal(scene, config.image_size)).right, (prompt, wrong)
            assert wrong.text != prompt.text or kind == "relation"
    assert tried or kind in ("relation", "size")


def test_anything_besides_what_was_asked_is_wrong():
    prompt = Prompt("", "position", "a fox above a bell", (Asked("fox"), Asked("bell", colour="blue")), "above")
    fox, bell = Seen("fox", "red", 0.5, 0.2, 0.3, 0.9), Seen("bell", "blue", 0.45, 0.8, 0.3, 0.9)
    assert verdict(prompt, [bell, fox]).right
    for seen, why in (
        ([fox], "0 bell"),
        ([fox, bell, fox], "2 fox"),
        ([fox, bell, Seen("key", "red", 0, 0, 0.1, 0.9)], "key that nobody"),
        ([fox, Seen("bell", "red", 0.45, 0.8, 0.3, 0.9)], "bell is red"),
        ([fox, Seen("bell", "blue", 0.45, 0.1, 0.3, 0.9)], "below"),
    ):
        assert not verdict(prompt, seen).right
        assert why in verdict(prompt, seen).why


def test_an_edited_picture_must_show_the_whole_target():
    config = level_config("standard")
    prompts = [p for p in load_prompts() if p.category == "attribution"][:20]
    for prompt, other in pairwise(prompts):
        scene = scene_for(prompt, config, 0)
        picture = render(scene, config)
        assert background_of(picture) == scene.background
        assert shows(scene, ideal(scene, 64), picture).right
        moved = [Seen(t.noun, t.colour, (t.x + 0.4) % 1, t.y, t.size, 1.0) for t in ideal(scene, 64)]
        assert not shows(scene, moved, picture).right
        assert not shows(scene, ideal(scene_for(other, config, 0), 64), picture).right
        assert not shows(scene, ideal(scene, 64)[:1], picture).right
        assert not shows(scene, ideal(scene, 64), 255 - picture).right


def test_relations_of_prompts_are_all_asked_for():
    asked = {prompt.relation for prompt in load_prompts() if prompt.relation}
    assert asked == set(RELATIONS)


def test_an_unknown_level_names_the_known_ones():
    with pytest.raises(ValueError, match="tiny, standard, hard"):
        load_prompts("easy")


def test_crowds_overlap_by_no_more_than_they_may():
    config = level_config("hard")
    covered = []
    for prompt in load_prompts("hard")[40:140]:
        scene = scene_for(prompt, config, 0)
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:
                across = min(a.x + a.size, b.x + b.size) - max(a.x, b.x)
                down = min(a.y + a.size, b.y + b.size) - max(a.y, b.y)
                covered.append(max(0, across) * max(0, down) / min(a.size, b.size) ** 2)
    assert 0 < np.max(covered) <= config.overlap


def test_prompts_say_what_they_ask():
    for prompt in load_prompts("hard"):
        for item in prompt.asked:
            assert item.colour is None or item.colour in prompt.text
            assert item.size is None or item.size in prompt.text
    assert asdict(load_prompts("standard")[0])["seen"] is True
    assert {canvas_of(level) for level in LEVELS} == {64, 128}


@each_level
def test_prompts_to_learn_from_are_none_that_are_scored_and_combine_nothing_held_out(level):
    found = training_prompts(level)
    assert found == training_prompts(level) and len({prompt.text for prompt in found}) == len(found) > 300
    assert not {prompt.text for prompt in found} & {prompt.text for prompt in load_prompts(level)}
    assert all(prompt.seen for prompt in found)


@each_level
def test_credit_is_one_where_the_verdict_is_right_and_grows_with_what_is(level):
    config = level_config(level)
    for prompt in random.Random(1).sample(load_prompts(level), 60):
        seen = ideal(scene_for(prompt, config, seed=5), config.image_size)
        assert verdict(prompt, seen).right and credit(prompt, seen) == 1
        less = [credit(prompt, seen[:count]) for count in range(len(seen) + 1)]
        assert max(less[:-1]) < 1 and less[0] <= less[-2]
        other = next(noun for noun in config.nouns if all(thing.noun != noun for thing in seen))
        assert 0 < credit(prompt, [*seen, Seen(other, "red", 0.5, 0.5, 0.2, 0.9)]) < 1
        assert (credit(prompt, seen[1:]) == 1) == verdict(prompt, seen[1:]).right
