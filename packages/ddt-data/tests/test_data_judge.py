"""The embedded judges read scenes, also damaged ones, and say the same whatever the batch."""

import runpy
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch

from ddt_data import Judge, level_config, load_prompts, render, scene_for, verdict
from ddt_data.sceneeval.judge import JUDGES, judge_file, judge_hash

SCRIPT = Path(__file__).parent.parent / "scripts" / "damage.py"
LEVELS, damage = itemgetter("LEVELS", "damage")(runpy.run_path(str(SCRIPT)))
each_judge = pytest.mark.parametrize("name", JUDGES)


def pictures_of(prompts, level="standard", seed=123):
    config = level_config(level)
    return np.stack([render(scene_for(prompt, config, seed + i), config) for i, prompt in enumerate(prompts)])


@each_judge
def test_a_judge_knows_real_scenes_and_refuses_wrong_ones(name):
    judge, prompts = Judge.from_pretrained(name), load_prompts()[::3]
    seen = judge.read(pictures_of(prompts))
    assert np.mean([verdict(p, s).right for p, s in zip(prompts, seen, strict=True)]) >= 0.97
    others = prompts[1:] + prompts[:1]
    assert np.mean([verdict(p, s).right for p, s in zip(others, seen, strict=True)]) <= 0.02


def test_damage_grows_and_judges_stand_it():
    judge, prompts = Judge.from_pretrained("a"), load_prompts()[40::5]
    clean = pictures_of(prompts)
    rng = np.random.default_rng(0)
    differences = []
    for level, least in zip(LEVELS, (0.96, 0.95, 0.9, 0.8), strict=True):
        damaged = damage(clean, level, rng)
        assert damaged.shape == clean.shape and damaged.dtype == np.uint8
        differences.append(np.abs(damaged.astype(int) - clean).mean())
        seen = judge.read(damaged)
        assert np.mean([verdict(p, s).right for p, s in zip(prompts, seen, strict=True)]) >= least, level
    assert differences == sorted(differences) and differences[0] == 0
    with pytest.raises(ValueError, match="none, light, medium, heavy"):
        damage(clean, "total", rng)


def test_what_is_seen_does_not_depend_on_the_batch_or_the_kind_of_input():
    judge = Judge.from_pretrained("a")
    pictures = pictures_of(load_prompts()[100:109])
    together = judge.read(pictures)
    alone = [judge.read(picture[None])[0] for picture in pictures]
    as_floats = judge.read(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, batch_size=4)
    for a, b, c in zip(together, alone, as_floats, strict=True):
        assert [(t.noun, t.colour) for t in a] == [(t.noun, t.colour) for t in b] == [(t.noun, t.colour) for t in c]
        np.testing.assert_allclose([t.x for t in a], [t.x for t in b], atol=1e-5)


def test_smaller_and_larger_pictures_are_brought_to_the_canvas():
    judge, prompts = Judge.from_pretrained("a"), load_prompts("tiny")[:60]
    seen = judge.read(pictures_of(prompts, "tiny"))
    assert np.mean([verdict(p, s).right for p, s in zip(prompts, seen, strict=True)]) >= 0.9
    hard = load_prompts("hard")[40:100]
    seen = judge.read(pictures_of(hard, "hard"), canvas=128)
    assert np.mean([verdict(p, s).right for p, s in zip(hard, seen, strict=True)]) >= 0.7


def test_a_judge_is_saved_and_loaded_alike(tmp_path):
    judge = Judge.from_pretrained("a")
    judge.save_pretrained(tmp_path / "again.safetensors")
    assert judge_hash(tmp_path / "again.safetensors") == judge_hash("a") != judge_hash("b")
    again = Judge.from_pretrained(tmp_path / "again.safetensors")
    for name, tensor in judge.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(FileNotFoundError, match="embedded ones are: a, b"):
        Judge.from_pretrained(tmp_path / "missing.safetensors")


def test_embedded_judges_are_small():
    assert all(judge_file(name).stat().st_size < 1.5e6 for name in JUDGES)


def test_colour_is_pooled_over_the_thing_and_not_beyond():
    colour = torch.zeros(1, 10, 16, 16)
    colour[:, 3, 6:10, 6:10] = 5.0  # the thing
    colour[:, 1, :, 12:] = 50.0  # something louder, elsewhere
    at = [torch.tensor([v]) for v in (8.0, 8.0, 4.0)]
    assert Judge.pool_colour(colour, torch.tensor([0]), *at).argmax().item() == 3
