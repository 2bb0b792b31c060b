"""Evaluation: what a model can do, each figure beside its ceiling and what chance or a trivial method gets.

A benchmark is a module with `Settings`, `evaluate(model, settings, name)` and `page(scores, shown)`.
"""

from ddt_apps.evaluation.answers import Settings as AnswersSettings
from ddt_apps.evaluation.answers import evaluate as evaluate_answers
from ddt_apps.evaluation.captions import Settings as CaptionsSettings
from ddt_apps.evaluation.captions import evaluate as evaluate_captions
from ddt_apps.evaluation.edits import Settings as EditsSettings
from ddt_apps.evaluation.edits import evaluate as evaluate_edits
from ddt_apps.evaluation.language import Settings as LanguageSettings
from ddt_apps.evaluation.language import evaluate as evaluate_language
from ddt_apps.evaluation.models import Assistant, load_model
from ddt_apps.evaluation.reconstruction import Settings as ReconstructionSettings
from ddt_apps.evaluation.reconstruction import evaluate as evaluate_reconstruction
from ddt_apps.evaluation.scenes import Settings as ScenesSettings
from ddt_apps.evaluation.scenes import evaluate as evaluate_scenes
from ddt_apps.evaluation.scores import Scores, compare_scores

__all__ = [
    "AnswersSettings",
    "Assistant",
    "CaptionsSettings",
    "EditsSettings",
    "LanguageSettings",
    "ReconstructionSettings",
    "ScenesSettings",
    "Scores",
    "compare_scores",
    "evaluate_answers",
    "evaluate_captions",
    "evaluate_edits",
    "evaluate_language",
    "evaluate_reconstruction",
    "evaluate_scenes",
    "load_model",
]
