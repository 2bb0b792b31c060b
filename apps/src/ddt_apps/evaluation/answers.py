"""ddt evaluate answers: questions about pictures, exact matches beside what can be had without looking."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import HeldOutSettings, by_split, scenes_for
from ddt_apps.evaluation.models import Answers, need
from ddt_apps.evaluation.scores import Scores, versions
from ddt_data import Question, SceneConfig, SceneGenerator, make_questions, render
from ddt_tokenizer.images import to_tensor

LEARNED_FROM = 4000  # training scenes from which the blind guess knows which answers are frequent


@dataclass(frozen=True)
class AnswersSettings(HeldOutSettings):
    """Settings of `ddt evaluate answers`; one question for each picture."""


@dataclass
class Answered:
    """What the page shows."""

    pictures: np.ndarray
    questions: list[Question]
    answers: list[str]


def evaluate_answers(
    model: Answers, settings: AnswersSettings = AnswersSettings(), name: str = "model"
) -> tuple[Scores, Answered]:
    """Score answers to questions about held-out scenes: percent of exact matches, by kind and split.

    Beside it two blind scores: the most frequent answer to the same question (or kind of question) in training scenes,
    and the model itself when it is shown another scene's picture.

    Raises:
        ValueError: The model cannot answer.
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
    blind_model = in_batches("answer blind", len(rows), lambda r: model.answer(elsewhere[r], texts[r]))
    guesses = _guesses(questions, config)

    def measured(answers: list[str]) -> dict[str, Any]:
        right = [100.0 * (a.strip().lower().rstrip(".") == q.answer) for a, q in zip(answers, questions, strict=True)]
        kinds = {
            kind: {
                "accuracy": float(np.mean([r for r, q in zip(right, questions, strict=True) if q.kind == kind])),
                "count": count,
            }
            for kind, count in sorted(Counter(q.kind for q in questions).items())
        }
        return {"accuracy": by_split(right, scenes), "kinds": kinds}

    protocol = {
        "level": settings.level,
        "count": settings.count,
        "seed": settings.seed,
        "image_size": config.image_size,
        "match": "exact, lower case, without a final full stop",
        "versions": versions(),
    }
    controls = {"frequent_answer": measured(guesses), "another_picture": measured(blind_model)}
    info = {"name": name, **getattr(model, "identity", {})}
    return Scores("answers", info, protocol, measured(given), controls), Answered(pictures, questions, given)


def _guesses(questions: list[Question], config: SceneConfig) -> list[str]:
    """The most frequent answer to each question in training scenes, or to its kind where it never comes."""

    frequent: dict[str, Counter[str]] = {}
    generator = SceneGenerator(config, seed=0)
    for i in range(LEARNED_FROM):
        for question in make_questions(generator[i], config, random.Random(f"blind {i}"), 3):
            for key in (question.question, question.kind):
                frequent.setdefault(key, Counter())[question.answer] += 1
    return [(frequent.get(q.question) or frequent[q.kind]).most_common(1)[0][0] for q in questions]
