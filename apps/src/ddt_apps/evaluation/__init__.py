"""Evaluation: what a model can do, each figure beside its ceiling and what chance or a trivial method gets."""

from ddt_apps.evaluation.answers import AnswersSettings, evaluate_answers
from ddt_apps.evaluation.captions import CaptionsSettings, evaluate_captions
from ddt_apps.evaluation.edits import EditsSettings, evaluate_edits
from ddt_apps.evaluation.models import Assistant, load_model
from ddt_apps.evaluation.reconstruction import ReconstructionSettings, evaluate_reconstruction
from ddt_apps.evaluation.scenes import ScenesSettings, evaluate_scenes
from ddt_apps.evaluation.scores import Scores, compare_scores

__all__ = [
    "AnswersSettings",
    "Assistant",
    "CaptionsSettings",
    "EditsSettings",
    "ReconstructionSettings",
    "ScenesSettings",
    "Scores",
    "compare_scores",
    "evaluate_answers",
    "evaluate_captions",
    "evaluate_edits",
    "evaluate_reconstruction",
    "evaluate_scenes",
    "load_model",
]
