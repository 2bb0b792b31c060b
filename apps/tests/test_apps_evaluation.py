"""Evaluation: models of known ability get the scores they deserve, the same twice, under a protocol that tells all."""

import json
import random
from dataclasses import replace

import pytest
import torch

from ddt_apps.evaluation import (
    AnswersSettings,
    CaptionsSettings,
    EditsSettings,
    ReconstructionSettings,
    ScenesSettings,
    Scores,
    answers,
    captions,
    compare_scores,
    edits,
    evaluate_answers,
    evaluate_captions,
    evaluate_edits,
    evaluate_reconstruction,
    evaluate_scenes,
    load_model,
    scenes,
)
from ddt_apps.evaluation.page import document
from ddt_apps.evaluation.pixels import l1, ssim
from ddt_apps.evaluation.scenes import other_prompts, summary
from ddt_apps.evaluation.verbs import run_evaluation
from ddt_data import Judge, Verdict, level_config, load_prompts, render, scene_for
from ddt_data.scenes.captions import noun_phrase
from ddt_tokenizer.images import psnr, to_tensor, to_uint8


class Pixels:
    """A tokenizer without loss: an id for each value of each pixel."""

    codebook_size, image_size, num_tokens = 256, 32, 3 * 32 * 32

    def encode(self, images):
        return ((images + 1) * 127.5).round().long().flatten(1)

    def decode(self, ids, keep_tokens=None):
        images = ids.float() / 127.5 - 1
        if keep_tokens is not None:
            images[:, : self.num_tokens - keep_tokens] = 0.0
        return images.view(-1, 3, 32, 32)


class Oracle:
    """Does everything right that can be done from words or by the judge; cannot edit and copies instead."""

    def __init__(self, image_size=32, level="tiny", spoil=0.0, codec=None):
        self.image_size, self.spoil, self.codec = image_size, spoil, codec
        self.identity = {"weights": "none"}
        self.config = replace(level_config(level), image_size=image_size)
        self.prompts = {prompt.text: prompt for prompt in load_prompts(level)}
        self.judge = Judge.from_pretrained("a")

    def draw(self, prompts, seed):
        pictures = []
        for i, text in enumerate(prompts):
            rng = random.Random(seed + i)
            text, _, ground = text.partition(" on a ")
            if text not in self.prompts or rng.random() < self.spoil:
                text = rng.choice(list(self.prompts))
            scene = scene_for(self.prompts[text], self.config, seed + i)
            pictures.append(render(replace(scene, background=ground.split()[0]) if ground else scene, self.config))
        return to_tensor(pictures)

    def edit(self, images, instructions, seed):
        return images

    def answer(self, images, questions):
        return ["yes"] * len(questions)

    def caption(self, images):
        said = []
        for things in self.judge.read(to_uint8(images)):
            said.append(" and ".join(noun_phrase(t.noun, t.colour) for t in things) or "nothing")
        return said


SMALL = ScenesSettings(level="tiny", pictures=1)


@pytest.fixture(scope="module")
def oracle():
    return evaluate_scenes(Oracle(codec=Pixels()), SMALL)


def test_a_perfect_model_reaches_the_ceiling_and_chance_is_nought(oracle):
    scores, judged = oracle
    assert scores.scores["overall"] >= 96
    assert scores.controls["real"]["overall"] >= 96
    assert scores.controls["shuffled_prompts"]["overall"] <= 2
    assert scores.controls["judges_agree"]["real"] >= 95
    assert abs(scores.controls["tokenizer"]["overall"] - scores.controls["real"]["overall"]) < 1e-9
    assert scores.controls["tokenizer_prefixes"]["1"] <= 2
    assert scores.scores["count_error"] < 0.2
    assert scores.scores["background_as_asked"] == 100
    assert scores.controls["any_background"]["background_as_asked"] == pytest.approx(100 / 6)
    html = document(scores, scenes.page(scores, judged), "ddt evaluate scenes oracle")
    assert html.count("<img") > 40 and "\u2713" in html and scores.protocol_id in html


def test_the_same_command_twice_gives_the_same_digits(oracle):
    first, second = (evaluate_scenes(Oracle(), SMALL)[0] for _ in range(2))
    assert first == second and first.scores == oracle[0].scores


def test_the_protocol_tells_everything_but_the_model(oracle):
    bad, _ = evaluate_scenes(Oracle(spoil=0.5), SMALL, name="bad")
    assert bad.protocol_id == oracle[0].protocol_id
    assert 35 < bad.scores["overall"] < 65
    for other, _ in (
        evaluate_scenes(Oracle(), replace(SMALL, seed=1)),
        evaluate_scenes(Oracle(image_size=48), SMALL),
        evaluate_scenes(Oracle(), replace(SMALL, judge="b")),
    ):
        assert other.protocol_id != oracle[0].protocol_id


def test_only_scores_of_one_protocol_stand_in_one_table_without_warning(oracle, tmp_path):
    scores = oracle[0]
    scores.save(tmp_path / "a")
    replace(scores, model={"name": "other"}).save(tmp_path / "b")
    replace(scores, protocol=scores.protocol | {"seed": 5, "image_size": 64}).save(tmp_path / "c")
    header, rows, warnings = compare_scores([tmp_path / "a", tmp_path / "b"])
    assert header == ["figure", "model", "other"] and not warnings
    assert {row[0]: row[1] for row in rows}["overall"] == f"{scores.scores['overall']:.4g}"
    _, _, warnings = compare_scores([tmp_path / "a", tmp_path / "c"])
    assert len(warnings) == 1 and "image_size, seed" in warnings[0]
    content = json.loads((tmp_path / "a" / "scores.json").read_text())
    content["protocol"]["seed"] = 9
    (tmp_path / "a" / "scores.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="says protocol"):
        Scores.load(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="make them with"):
        Scores.load(tmp_path / "nowhere")


def test_every_picture_is_held_against_another_prompt_of_its_category_for_chance():
    prompts = [p for p in load_prompts("tiny") for _ in range(4)]
    for prompt, other in zip(prompts, other_prompts(prompts, 4), strict=True):
        assert prompt.category == other.category and prompt.text != other.text


def test_overall_is_the_mean_of_the_categories_and_its_error_counts_prompts_not_pictures():
    prompts = [p for p in load_prompts("standard") for _ in range(4)]
    verdicts = [Verdict(p.category == "single" or p.key.endswith(("1", "3"))) for p in prompts]
    table = summary(prompts, verdicts)
    means = [row["all"] for row in table["categories"].values()]
    assert table["overall"] == pytest.approx(sum(means) / 6)
    assert table["categories"]["single"] == {"all": 100.0, "seen": 100.0}
    once = summary(prompts[::4], verdicts[::4])
    assert once["standard_error"] == pytest.approx(table["standard_error"])


def test_copying_the_input_gets_what_the_control_says():
    scores, edited = evaluate_edits(Oracle(codec=Pixels()), EditsSettings(level="tiny", count=60))
    copied = scores.controls["copy_input"]
    assert scores.scores == copied
    assert copied["success"]["all"] <= 5 and copied["l1_outside"] == 0
    exact = scores.controls["exact_target"]
    assert exact["success"]["all"] >= 90 and exact["l1"]["all"] == 0
    assert exact["l1_outside"] < 0.5, "an edit changes nothing outside the boxes of what it names"
    assert scores.controls["tokenizer"] == exact
    assert set(copied["kinds"]) <= {"add", "remove", "replace", "recolour", "move", "background"}
    assert document(scores, edits.page(scores, edited), "").count("<img") >= 3 * 24


def test_a_parrot_answers_no_better_than_blind():
    scores, answered = evaluate_answers(Oracle(), AnswersSettings(level="tiny", count=200))
    right = sum(q.answer == "yes" for q in answered.questions) / len(answered.questions)
    assert scores.scores["accuracy"]["all"] == pytest.approx(100 * right)
    assert scores.controls["another_picture"] == scores.scores
    assert scores.controls["frequent_answer"]["accuracy"]["all"] > scores.scores["accuracy"]["all"]
    assert "frequent" in document(scores, answers.page(scores, answered), "")


def test_captions_are_scored_by_what_they_say():
    scores, captioned = evaluate_captions(Oracle(), CaptionsSettings(level="tiny", count=120))
    ceiling, chance = scores.controls["true_captions"], scores.controls["of_another_picture"]
    assert ceiling["exact"]["all"] == ceiling["nouns_f1"] == ceiling["counts_f1"] == ceiling["colours_f1"] == 100
    assert scores.scores["nouns_f1"] > 90 > 40 > chance["nouns_f1"]
    assert 60 < scores.scores["colours_f1"] < 100  # it names a colour for natural ones too
    assert len(captioned.captions) == 120 and document(scores, captions.page(scores, captioned), "")


def test_a_tokenizer_without_loss_reconstructs_exactly():
    scores, _ = evaluate_reconstruction(Pixels(), ReconstructionSettings(level="tiny", count=40))
    assert scores.scores["psnr"] == pytest.approx(100, abs=1) and scores.scores["ssim"] == pytest.approx(1, abs=1e-4)
    assert scores.scores["bits_per_image"] == 8 * 3 * 32 * 32
    curve = list(scores.controls["psnr_from_coarsest"].values())
    assert curve == sorted(curve)
    assert scores.controls["mean_picture"]["psnr"] < 20


def test_distances_are_those_of_their_definitions():
    torch.manual_seed(0)
    a, b = torch.rand(3, 3, 32, 32) * 2 - 1, torch.rand(3, 3, 32, 32) * 2 - 1
    mse = ((a - b) / 2).square().mean((1, 2, 3))
    assert torch.allclose(psnr(a, b), 10 * torch.log10(1 / mse))
    assert torch.allclose(l1(a, b), (a - b).abs().mean((1, 2, 3)) * 50)
    where = torch.zeros(3, 32, 32, dtype=torch.bool)
    where[:, 4:9] = True
    assert torch.allclose(l1(a, b, where), (a - b)[:, :, 4:9].abs().mean((1, 2, 3)) * 50, rtol=1e-4)
    assert torch.allclose(ssim(a, a), torch.ones(3)) and ssim(a, b).max() < 0.2


def test_an_adapter_is_ten_lines_and_what_it_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peer.py").write_text(
        "import torch\n\n\nclass Peer:\n    def draw(self, prompts, seed):\n"
        "        return torch.zeros(len(prompts), 3, 32, 32)\n\n\ndef load():\n    return Peer()\n"
    )
    scores = run_evaluation(scenes, "peer.py:load", None, ["level=tiny", "pictures=1"])
    assert scores.scores["overall"] == 0 and "tokenizer" not in scores.controls
    assert scores.scores["background_as_asked"] == 0  # grey is none of this level
    assert (tmp_path / "evaluation/scenes/index.html").is_file()
    assert Scores.load(tmp_path / "evaluation/scenes") == scores
    with pytest.raises(ValueError, match=r"needs a model with edit\(\)"):
        run_evaluation(edits, "peer.py:load", None, [])
    with pytest.raises(ValueError, match="has no 'make'"):
        load_model("peer.py:make")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model("nowhere.py:load")
    with pytest.raises(ValueError, match="did you mean 'level'"):
        run_evaluation(scenes, "peer.py:load", None, ["levle=tiny"])
    with pytest.raises(ValueError, match="tiny, standard, hard"):
        run_evaluation(scenes, "peer.py:load", None, ["level=huge"])
