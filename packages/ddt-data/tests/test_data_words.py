"""Captions, edits and questions are true to their scenes and balanced."""

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from ddt_data import (
    EDIT_KINDS,
    NOUNS,
    QUESTION_KINDS,
    SceneConfig,
    SceneGenerator,
    caption,
    make_edit,
    make_questions,
    prose,
    relation,
    render,
)
from ddt_data.scenes.captions import NUMBERS, plural
from ddt_data.scenes.scene import RELATIONS, in_split

CONFIGS = {"default": SceneConfig(), "tiny": SceneConfig.tiny()}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
SINGULAR = {plural(noun): noun for noun in NOUNS}


def read_caption(text: str) -> tuple[Counter, str | None]:
    """An independent reader: what objects a caption names, and the relation of the first to the second."""
    text = re.sub(r" (on a \w+ background|in the \w+ style)", "", text)
    text = re.sub(r"^(a picture of|an image of|a drawing of|there is|there are) ", "", text)
    found = re.search(rf" ({'|'.join(RELATIONS)}) ", text)
    phrases = re.split(rf",| and | (?:{'|'.join(RELATIONS)}) ", text)
    objects = Counter()
    for phrase in phrases:
        number, *colour, noun = phrase.split()
        count = 1 if number in ("a", "an") else NUMBERS.index(number)
        objects[noun if count == 1 else SINGULAR[noun], colour[0] if colour else None] += count
    return objects, found and found[1]


@each_config
def test_a_caption_names_exactly_what_the_scene_holds(config):
    generator, rng = SceneGenerator(config, seed=11), random.Random(0)
    for index in range(500):
        scene = generator[index]
        objects, where = read_caption(caption(scene, rng))
        assert objects == Counter((thing.noun, thing.colour) for thing in scene.objects)
        if where:
            first = next(thing for thing in scene.objects if (thing.noun, thing.colour) == next(iter(objects)))
            (second,) = (thing for thing in scene.objects if thing is not first)
            assert where == relation(first, second)


def test_style_and_background_words_come_as_often_as_asked():
    generator, rng = SceneGenerator(SceneConfig(), seed=12), random.Random(0)
    scenes = [generator[index] for index in range(1500)]
    texts = [caption(scene, rng, style_words=0.3, background_words=0.7) for scene in scenes]
    assert abs(np.mean([" style" in text for text in texts]) - 0.3) < 0.05
    named = [text for text in texts if " background" in text]
    assert abs(len(named) / len(texts) - 0.7) < 0.05
    for scene, text in zip(scenes, texts, strict=True):
        assert " background" not in text or f"on a {scene.background} background" in text


@each_config
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_changes_what_it_names_and_nothing_else(config, kind):
    generator, rng = SceneGenerator(config, seed=13), random.Random(0)
    drawn = 0
    for index in range(200):
        try:
            edit = make_edit(generator[index], config, rng, kinds=[kind])
        except ValueError:
            continue
        drawn += 1
        before, after = set(edit.source.objects), set(edit.target.objects)
        gone, new = before - after, after - before
        assert (edit.source.background == edit.target.background) == (kind != "background")
        assert not np.array_equal(render(edit.source, config), render(edit.target, config))
        assert in_split(edit.source, "train") and in_split(edit.target, "train")
        if kind == "add":
            assert not gone and len(new) == 1
        elif kind == "remove":
            assert not new and len(gone) == 1
        elif kind == "background":
            assert not gone and not new and edit.target.background in edit.instruction
        elif kind == "move":
            ((old,), (moved,)) = gone, new
            assert (old.noun, old.colour, old.size) == (moved.noun, moved.colour, moved.size)
        elif kind == "replace":
            ((old,), (put,)) = gone, new
            assert (old.x, old.y, old.size, old.style) == (put.x, put.y, put.size, put.style)
            assert old.noun in edit.instruction and put.noun in edit.instruction
        else:
            assert {(t.noun, t.x, t.y, t.size) for t in gone} == {(t.noun, t.x, t.y, t.size) for t in new}
            assert all(thing.colour in edit.instruction for thing in new)
    assert drawn > 20


@each_config
def test_edits_come_in_all_kinds_and_phrasings(config):
    generator, rng = SceneGenerator(config, seed=14), random.Random(0)
    edits = [make_edit(generator[index], config, rng) for index in range(600)]
    kinds = Counter(edit.kind for edit in edits)
    assert all(kinds[kind] > 0.06 * len(edits) for kind in EDIT_KINDS)
    for kind in EDIT_KINDS:
        assert len({edit.instruction.split()[0] for edit in edits if edit.kind == kind}) == 3


def test_unseen_edits_start_from_an_unseen_scene():
    config = SceneConfig()
    generator, rng = SceneGenerator(config, seed=15, split="unseen"), random.Random(0)
    assert all(in_split(make_edit(generator[i], config, rng, "unseen").source, "unseen") for i in range(200))


def test_an_unknown_or_impossible_edit_is_refused():
    config = SceneConfig(nouns=("fox",), backgrounds=("white",), max_objects=1)
    scene = SceneGenerator(config, seed=0)[0]
    with pytest.raises(ValueError, match="'rotate'"):
        make_edit(scene, config, random.Random(0), kinds=["rotate"])
    with pytest.raises(ValueError, match="background"):
        make_edit(scene, config, random.Random(0), kinds=["background"])


def questions_of(config: SceneConfig, count: int):
    generator, rng = SceneGenerator(config, seed=16), random.Random(0)
    for index in range(count):
        for question in make_questions(generator[index], config, rng, count=3):
            yield generator[index], question


@each_config
def test_answers_are_true_and_short(config):
    for scene, asked in questions_of(config, 400):
        assert 1 <= len(asked.answer.split()) <= 2 and asked.question.endswith("?")
        if asked.kind == "background":
            assert asked.answer == scene.background
        elif asked.kind == "how many":
            noun = SINGULAR[asked.question.split()[2]]
            assert scene.counts[noun] == NUMBERS.index(asked.answer)
        elif asked.kind == "colour":
            noun = asked.question.split()[4].rstrip("?")
            assert {t.colour for t in scene.objects if t.noun == SINGULAR.get(noun, noun)} == {asked.answer}
        elif asked.question.startswith("is there"):
            assert (asked.question.split()[-1].rstrip("?") in scene.counts) == (asked.answer == "yes")
        elif asked.kind == "what":
            assert SINGULAR.get(asked.answer, asked.answer) in scene.counts


@each_config
def test_guessing_blind_does_not_pay(config):
    """The best answer to each wording, nouns and places aside, is little better than an even draw."""
    answers = defaultdict(Counter)
    for _, asked in questions_of(config, 4000):
        words = asked.question.rstrip("?").split()
        wording = " ".join("it" if word in NOUNS or word in SINGULAR else word for word in words)
        answers[asked.kind, wording][asked.answer] += 1
    assert {kind for kind, _ in answers} == set(QUESTION_KINDS)
    for (kind, wording), counts in answers.items():
        total = counts.total()
        if total < 300 or (kind == "yes/no" and "there" not in wording):
            continue
        assert counts.most_common(1)[0][1] / total < 1.3 / len(counts) + 0.03, (wording, counts)
    yes = sum(counts["yes"] for (kind, _), counts in answers.items() if kind == "yes/no")
    assert abs(yes / sum(c.total() for (kind, _), c in answers.items() if kind == "yes/no") - 0.5) < 0.04


def test_questions_of_a_scene_differ():
    for index in range(50):
        scene = SceneGenerator(SceneConfig(), seed=17)[index]
        asked = [q.question for q in make_questions(scene, SceneConfig(), random.Random(0), count=5)]
        assert len(set(asked)) == len(asked) == 5


def test_prose_speaks_of_every_noun():
    text = " ".join(prose()).lower()
    assert 100 <= len(prose()) <= 200
    assert all(noun in text for noun in NOUNS)
    assert len(set(prose())) == len(prose())
