"""Drawing by search, for `ddt evaluate scenes`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from ddt_apps.evaluation.models import Assistant, need
from ddt_apps.rewards import SceneReward
from ddt_data import load_prompts
from ddt_llm.search import CaptionLikelihood, Search, search


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Search):
    """Settings of a search, and what judges in it."""

    # likelihood: how likely the model finds the prompt as caption; judge: the one that gives the score, so that only
    # "Overall by the second judge" counts.
    verifier: Literal["likelihood", "judge"] = "likelihood"


class Searching:
    """An assistant that draws by search.

    Raises:
        ValueError: If the model is none of ours.
    """

    def __init__(self, assistant: Assistant, settings: SearchSettings, level: str, judge: str):
        need(assistant, "lm", "scenes with search")
        self.assistant, self.settings = assistant, settings
        self.verifier = CaptionLikelihood(assistant.lm)
        if settings.verifier == "judge":
            self.verifier = SceneReward(load_prompts(level), level, judge)
        self.identity = {**assistant.identity, "search": asdict(settings)}

    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Draw a picture for each prompt."""
        one, pictures = self.assistant, []
        settings = {"guidance_scale": one.guidance, "temperature": one.temperature, "denoising": one.denoising}
        for number, prompt in enumerate(prompts):
            first = (seed + number) * self.settings.calls % 2**62
            found = search(one.lm, prompt, one.codec, self.verifier, self.settings, first, **settings)
            one.passes.append(found.best.passes)
            pictures.append(found.best.images[0])
        return torch.stack(pictures)
