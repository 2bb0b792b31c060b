"""ddt evaluate answers: questions about pictures, exact matches beside what can be had without looking."""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.means import Figures, by_kind
from ddt_apps.evaluation.models import Answers, computed, described, need
from ddt_apps.evaluation.page import Page, against
from ddt_apps.evaluation.scores import Scores, shown
from ddt_apps.pages.report import answers as cards
from ddt_apps.pages.report import section
from ddt_data import Question, SceneConfig, SceneGenerator, make_questions, render
from ddt_tokenizer.images import to_tensor

LEARNED_FROM = 4000  # training scenes from which the blind guess knows which answers are frequent


@dataclass(frozen=True, kw_only=True)
class Settings(HeldOutSettings):
    """Settings of `ddt evaluate answers`; one question for each picture."""


@dataclass
class Answered:
    """What the page shows."""

    pictures: np.ndarray
    questions: list[Question]
    answers: list[str]


def evaluate(model: Answers, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Answered]:
    """Score answers to questions about held-out scenes: percent of exact matches, by kind and split.

    Beside it two blind scores: the most frequent answer to the same question (or kind of question) in training scenes,
    and the model itself when it is shown another scene's picture.

    Raises:
        ValueError: If the model cannot answer.
    """
    need(model, "answer", "answers")
    scenes, config = scenes_for(model, settings)
    asked = [(make_questions(s.scene, config, s.rng, 1) or [None])[0] for s in scenes]
    rows = [row for row, question in enumerate(asked) if question is not None]
    scenes, questions = [scenes[row] for row in rows], [asked[row] for row in rows]
    pictures = np.stack([render(s.scene, config) for s in scenes])
    images, texts = to_tensor(pictures), [question.question for question in questions]
    given = in_batches("answer", len(rows), lambda r: model.answer(images[r], texts[r]))
    elsewhere = images.roll(len(images) // 2 + 1, 0)
    blind = in_batches("answer blind", len(rows), lambda r: model.answer(elsewhere[r], texts[r]))

    def measured(answers: list[str]) -> Figures:
        right = [100.0 * (a.strip().lower().rstrip(".") == q.answer) for a, q in zip(answers, questions, strict=True)]
        return by_split("accuracy", right, scenes) | {"kinds": by_kind([q.kind for q in questions], accuracy=right)}

    match = {"match": "exact, lower case, without a final full stop"}
    protocol = settings.protocol(config.image_size) | computed(model) | match
    controls = {"frequent_answer": measured(_guesses(questions, config)), "another_picture": measured(blind)}
    scores = Scores("answers", described(model, name), protocol, measured(given), controls)
    return scores, Answered(pictures, questions, given)


def _guesses(questions: list[Question], config: SceneConfig) -> list[str]:
    """The most frequent answer to each question in training scenes, or to its kind where it never comes."""
    frequent: dict[str, Counter[str]] = {}
    generator = SceneGenerator(config, seed=0)
    for i in range(LEARNED_FROM):
        for question in make_questions(generator[i], config, random.Random(f"blind {i}"), 3):
            for key in (question.question, question.kind):
                frequent.setdefault(key, Counter())[question.answer] += 1
    return [(frequent.get(q.question) or frequent[q.kind]).most_common(1)[0][0] for q in questions]


def page(scores: Scores, answered: Answered) -> Page:
    """Show accuracy by kind of question beside both blind scores, and answers."""
    rivals = [scores.scores, scores.controls["frequent_answer"], scores.controls["another_picture"]]
    rows = [
        [kind, str(figures["count"]), *(shown(rival["kinds"][kind], "accuracy") for rival in rivals)]
        for kind, figures in scores.scores["kinds"].items()
    ]
    for column in scores.scores["accuracy"]:
        said = {"all": "all", "seen": "seen combinations", "unseen": "unseen combinations"}[column]
        rows.append([said, "", *(shown(rival, f"accuracy.{column}") for rival in rivals)])
    triples = list(zip(answered.pictures, answered.questions, answered.answers, strict=True))[:24]
    return Page(
        title="Questions",
        intro=f"{len(answered.questions)} questions about held-out scenes.",
        metrics=[against(scores, "accuracy.all", "frequent_answer", "Answered right", "frequent answers", "%")],
        about="Percent of exact matches, \u00b1 one standard error.",
        tables=[(["kind", "questions", "model", "most frequent answer", "model with another picture"], rows)],
        sections=[section("Answers", "", cards([(p, [(q.question, a, q.answer)]) for p, q, a in triples]))],
    )
