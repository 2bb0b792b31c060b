"""The figures of evaluations: means, their standard errors, bits and distances, on cases whose answer is known."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddt_apps.cli.main import evaluate
from ddt_apps.evaluation import (
    LanguageSettings,
    Scores,
    compare_scores,
    evaluate_language,
    language,
)
from ddt_apps.evaluation.heldout import by_split, held_out_scenes
from ddt_apps.evaluation.language import other_captions, unigram_bits
from ddt_apps.evaluation.means import by_kind, mean_of, ratio_of, standard_error
from ddt_apps.evaluation.models import visual_bits
from ddt_apps.evaluation.page import document
from ddt_apps.evaluation.pixels import l1
from ddt_apps.evaluation.scenes import summary
from ddt_apps.evaluation.scores import shown
from ddt_data import SceneConfig, SceneGenerator, Verdict, load_prompts, render
from ddt_data.sceneeval.verdicts import background_of
from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer.images import psnr


def test_psnr_agrees_with_torchmetrics():
    a, b = torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3, 8, 8) * 2 - 1
    reference = peak_signal_noise_ratio(a, b, data_range=2.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert float(psnr(a, b).mean()) == pytest.approx(float(reference), abs=1e-4)


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


def bootstrap(rows, figure, draws=2000):
    """Standard deviation of a figure over rows that are drawn again with replacement."""
    rng = np.random.default_rng(0)
    return np.std([figure([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(draws)])


def test_the_error_of_a_mean_is_that_of_drawing_again():
    values = np.random.default_rng(1).gamma(2.0, size=80).tolist()
    assert standard_error(values) == pytest.approx(bootstrap(values, np.mean), rel=0.08)
    assert mean_of("x", torch.tensor(values))["x_standard_error"] == pytest.approx(standard_error(values), rel=1e-5)


def test_the_error_of_rights_and_wrongs_is_the_binomial_one():
    rights = [100.0] * 30 + [0.0] * 70
    assert standard_error(rights) == pytest.approx(100 * math.sqrt(0.3 * 0.7 / 99))
    assert standard_error([100.0]) is None


def test_the_error_of_a_ratio_is_that_of_drawing_again():
    rng = np.random.default_rng(2)
    wholes = rng.integers(1, 6, size=120)
    rows = [(float(rng.binomial(whole, 0.4)), float(whole)) for whole in wholes]
    found = ratio_of("f1", *zip(*rows, strict=True))
    assert found["f1"] == sum(part for part, _ in rows) / wholes.sum()
    drawn = bootstrap(rows, lambda some: sum(part for part, _ in some) / sum(whole for _, whole in some))
    assert found["f1_standard_error"] == pytest.approx(drawn, rel=0.08)
    assert ratio_of("f1", [0, 0], [0, 0]) == {"f1": 0.0, "f1_standard_error": None}


def test_the_error_of_overall_is_that_of_drawing_prompts_again():
    prompts = [p for p in load_prompts("standard") for _ in range(2)]
    rng = random.Random(0)
    verdicts = [Verdict(rng.random() < {"single": 0.9, "two": 0.5}.get(p.category, 0.2)) for p in prompts]
    found = summary(prompts, verdicts)
    rights = {}
    for prompt, given in zip(prompts, verdicts, strict=True):
        rights.setdefault(prompt.category, {}).setdefault(prompt, []).append(given.right)
    for category, of_prompts in rights.items():
        drawn = bootstrap([100 * np.mean(some) for some in of_prompts.values()], np.mean)
        assert found["categories_standard_error"][category]["all"] == pytest.approx(drawn, rel=0.1, abs=0.02)
    errors = [row["all"] for row in found["categories_standard_error"].values()]
    assert found["standard_error"] == pytest.approx(math.hypot(*errors) / 6)
    assert found["overall_by_split_standard_error"]["all"] == found["standard_error"]


def test_splits_and_kinds_are_means_of_their_rows():
    scenes, _ = held_out_scenes("tiny", 32, 9, seed=0)
    values = [float(i) for i in range(9)]
    found = by_split("x", values, scenes)
    assert found["x"] == {"all": 4.0, "seen": 4.0, "unseen": 4.0}
    assert found["x_standard_error"]["unseen"] == standard_error(values[1::2])
    kinds = by_kind(list("abacabaca"), x=values)
    assert [kinds[kind]["count"] for kind in "abc"] == [5, 2, 2] and kinds["b"]["x"] == 3.0
    assert sum(row["x"] * row["count"] for row in kinds.values()) / 9 == found["x"]["all"]


def test_scores_stand_side_by_side_with_their_errors_and_old_ones_without(tmp_path):
    figures = {"success": {"all": 7.25, "seen": 9.0}, "success_standard_error": {"all": 1.5, "seen": 2.0}, "tokens": 16}
    new = Scores("edits", {"name": "new"}, {}, figures, {})
    old = Scores("edits", {"name": "old"}, {}, {"success": figures["success"], "tokens": 16}, {})
    _, rows, warnings = compare_scores([new.save(tmp_path / "new"), old.save(tmp_path / "old")])
    assert rows[0] == ["success.all", "7.25 \u00b1 1.5", "7.25"] and not warnings
    assert [row[0] for row in rows] == ["success.all", "success.seen", "tokens", "protocol"]
    assert shown(figures, "success.unseen") == shown(figures, "nothing") == "-" and shown(figures, "tokens") == "16"


def test_unigrams_are_what_counting_gives():
    generator = torch.Generator().manual_seed(0)
    counted, ids = (torch.randint(5, (n, 3), generator=generator) for n in (40, 7))
    bits = unigram_bits(counted, ids, 5)
    for row in range(7):
        for k in range(3):
            often = Counter(counted[:, k].tolist())[int(ids[row, k])]
            assert float(bits[row, k]) == pytest.approx(-math.log2((often + 0.1) / (40 + 0.5)))


def test_another_caption_says_something_else():
    captions = ["a fox", "a fox", "a bell", "a fox", "a tree"]
    others = other_captions(captions)
    assert all(other != own and other in captions for own, other in zip(captions, others, strict=True))
    assert other_captions(["a fox", "a fox"]) == ["a fox", "a fox"]


class Rows:
    """A tokenizer of three ids: whether the top, the middle and the bottom of a picture are bright."""

    codebook_size, image_size, num_tokens = 2, 32, 3

    def encode(self, images):
        return torch.stack([(images[:, :, row].mean((1, 2)) > 0).long() for row in (0, 16, 31)], dim=1)

    def decode(self, ids):
        return torch.zeros(len(ids), 3, 32, 32)


class Reader:
    """Foretells an id in one bit if the caption is that of the picture, in three if it is another's, in two if none."""

    def __init__(self, truths):
        self.codec, self.truths, self.asked = Rows(), truths, []

    def bits(self, ids, captions):
        start = len(self.asked) % len(self.truths)
        self.asked += captions
        truths = self.truths[start : start + len(captions)]
        bits = [1.0 if said == truth else 3.0 if said else 2.0 for said, truth in zip(captions, truths, strict=True)]
        return torch.tensor(bits)[:, None].expand(ids.shape)


def test_a_caption_is_worth_what_it_saves_over_that_of_another_scene(monkeypatch):
    monkeypatch.setattr(language, "LEARNED_FROM", 200)
    scenes, config = held_out_scenes("tiny", 32, 100, seed=0)
    reader = Reader([scene.describe(config) for scene in scenes])
    scores, foretold = evaluate_language(reader, LanguageSettings(level="tiny", count=100))
    right, others, none = reader.asked[:100], reader.asked[100:200], reader.asked[200:]
    assert right == reader.truths and none == [""] * 100
    assert all(other in right and other != own for own, other in zip(right, others, strict=True))
    assert scores.scores["bits_per_token"] == {"all": 1.0, "seen": 1.0, "unseen": 1.0}
    assert scores.scores["caption_worth"]["all"] == 2.0 and scores.scores["bits_per_image"] == 3.0
    assert scores.controls["another_caption"]["bits_per_token"]["all"] == 3.0
    assert scores.controls["no_caption"]["bits_per_token"]["all"] == 2.0
    assert 0 < scores.controls["unigrams"]["bits_per_token"]["all"] < 1.5 and "untrained" not in scores.controls
    json.dumps(scores.content, allow_nan=False)
    html = document(scores, language.page(scores, foretold), "")
    assert html.count("<polyline") == 4 and right[0].split()[-1] in html
    with pytest.raises(ValueError, match=r"needs a model with bits\(\)"):
        evaluate_language(Rows(), LanguageSettings(level="tiny", count=2))


@pytest.mark.parametrize("template", ["caption", "instruction"])
@pytest.mark.parametrize("order", ["coarse_to_fine", "tokenizer", "shuffled-1"])
def test_bits_are_those_of_the_model_at_every_place(template, order):
    text = train_text_tokenizer(["a red fox on a black background"], vocab_size=300)
    model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text)
    model, text = expand_vocabulary(model, text, codebook_size=8, num_tokens=4, visual_order=order, spread=9.0)
    lm = MultimodalLM(model, text, template)
    ids, captions = (
        torch.randint(8, (5, 4), generator=torch.Generator().manual_seed(0)),
        ["a red fox", "a", "", "", "b"],
    )
    with torch.inference_mode():
        bits = visual_bits(lm, ids, captions)
    for row, (own, said) in enumerate(zip(ids, captions, strict=True)):
        lay = lm.sequences
        prompt = ([said] if said else []) if template == "instruction" else said
        example = lay.instruction(prompt, [own]) if template == "instruction" else lay.text_to_image(said, own)
        with torch.inference_mode():
            logits = model(example.input_ids[None]).logits[0].log_softmax(-1) / -math.log(2)
        places = [i for i, token in enumerate(example.input_ids) if token in range(*lm.vocabulary.visual.indices(9999))]
        written = torch.stack([logits[i - 1, example.input_ids[i]] for i in places])
        assert torch.allclose(bits[row, lm.vocabulary.order], written, atol=1e-4)
        assert float(lm.score([example]).bits_per_visual_token) == pytest.approx(float(bits[row].mean()), abs=1e-4)


def test_every_verb_of_evaluate_is_a_module_with_settings_evaluation_and_page():
    names = {command.name for command in evaluate.registered_commands} - {"table"}
    assert names == {"scenes", "reconstruction", "order", "edits", "answers", "captions", "language"}
    for name in names:
        module = __import__(f"ddt_apps.evaluation.{name}", fromlist=["page"])
        assert callable(module.Settings) and callable(module.evaluate) and callable(module.page)
