"""Evaluation: what a model can do, each figure beside its ceiling and what chance or a trivial method gets.

A benchmark is a module with `Settings`, `evaluate(model, settings, name)` and `page(scores, shown)`.
"""

from ddt_apps.evaluation import answers, captions, edits, language, order, reconstruction, scenes
from ddt_apps.evaluation.models import Assistant, load_model
from ddt_apps.evaluation.scores import Scores, compare_scores

AnswersSettings, evaluate_answers = answers.Settings, answers.evaluate
CaptionsSettings, evaluate_captions = captions.Settings, captions.evaluate
EditsSettings, evaluate_edits = edits.Settings, edits.evaluate
LanguageSettings, evaluate_language = language.Settings, language.evaluate
OrderSettings, evaluate_order = order.Settings, order.evaluate
ReconstructionSettings, evaluate_reconstruction = reconstruction.Settings, reconstruction.evaluate
ScenesSettings, evaluate_scenes = scenes.Settings, scenes.evaluate

__all__ = [
    "AnswersSettings",
    "Assistant",
    "CaptionsSettings",
    "EditsSettings",
    "LanguageSettings",
    "OrderSettings",
    "ReconstructionSettings",
    "ScenesSettings",
    "Scores",
    "compare_scores",
    "evaluate_answers",
    "evaluate_captions",
    "evaluate_edits",
    "evaluate_language",
    "evaluate_order",
    "evaluate_reconstruction",
    "evaluate_scenes",
    "load_model",
]
