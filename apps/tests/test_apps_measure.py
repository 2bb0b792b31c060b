"""The demo's measures: right on cases whose answer is known."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddt_apps.demo.measure import l1, named_background, psnr
from ddt_data import SceneConfig, SceneGenerator, make_sample, render
from ddt_data.sceneeval.verdicts import background_of


def test_psnr_agrees_with_torchmetrics():
    a, b = torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3, 8, 8) * 2 - 1
    reference = peak_signal_noise_ratio(a, b, data_range=2.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(a, b) == pytest.approx(float(reference), abs=1e-4)


def test_l1_is_in_percent_of_the_range():
    assert l1(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)) == 100
    assert l1(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)) == 0


def test_the_background_judge_is_right_on_real_scenes():
    config = SceneConfig.tiny()
    generator, noise = SceneGenerator(config, seed=3), np.random.default_rng(0)
    for i in range(200):
        scene = generator[i]
        picture = render(scene, config).astype(float) + noise.normal(0, 12, (32, 32, 3))
        assert background_of(picture.clip(0, 255).astype(np.uint8)) == scene.background


def test_the_background_word_is_found_in_captions():
    generator = SceneGenerator(SceneConfig.tiny(), seed=3)
    found = 0
    for i in range(100):
        sample = make_sample(generator, i, edits=False)
        name = named_background(sample["text"])
        found += name is not None
        assert name in (None, sample["meta"]["scene"]["background"])
    assert 50 < found < 90
