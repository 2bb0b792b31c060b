"""What `ddt rl` rewards: SceneEval's judge, a function of yours, a server, or several of them with weights."""

import base64
import io
import json
from collections.abc import Sequence
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from PIL import Image
from torch import Tensor

from ddt_apps.run.own_code import load_named
from ddt_data import Judge, Prompt, verdict
from ddt_data.sceneeval.prompts import canvas_of
from ddt_data.sceneeval.verdicts import credit
from ddt_llm.reward import Reward
from ddt_tokenizer.images import to_uint8

SECONDS = 60  # that a server may take


class SceneReward:
    """What a judge of SceneEval sees, against what its prompts ask for.

    Args:
        prompts: All that may be asked.
        level: Of SceneEval.
        judge: An embedded one, or a file.
        partial: Whether what is right in part counts, as a share; else 1 or 0.
    """

    def __init__(self, prompts: Sequence[Prompt], level: str, judge: str = "a", partial: bool = True):
        self.prompts, self.canvas, self.partial = {prompt.text: prompt for prompt in prompts}, canvas_of(level), partial
        self.judge = Judge.from_pretrained(judge)

    def __call__(self, images: Tensor | None, ids: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge images [B, 3, H, W]: [B], 0 to 1."""
        seen = self.judge.read(to_uint8(images), self.canvas)
        asked = [self.prompts[prompt] for prompt in prompts]
        pairs = zip(asked, seen, strict=True)
        return torch.tensor([credit(*pair) if self.partial else float(verdict(*pair).right) for pair in pairs])


class ServedReward:
    """A server, which answers `{"rewards": [...]}` to a POST.

    It gets `{"prompts": [...], "ids": [[...], ...], "images": [PNG in base64, ...]}`.
    """

    def __init__(self, url: str):
        self.url = url

    def __call__(self, images: Tensor | None, ids: Tensor, prompts: Sequence[str]) -> Tensor:
        """Ask the server: [B].

        Raises:
            ValueError: If it does not answer, or not with a number for each image.
        """
        pictures = [] if images is None else [_png(picture) for picture in to_uint8(images)]
        body = json.dumps({"prompts": list(prompts), "ids": ids.tolist(), "images": pictures}).encode()
        try:
            with urlopen(Request(self.url, body, {"Content-Type": "application/json"}), timeout=SECONDS) as answer:
                rewards = torch.tensor(json.load(answer)["rewards"], dtype=torch.float32)
        except (URLError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"rewards: {self.url} does not answer with rewards ({error}); start it, and go on"
            ) from error
        if rewards.shape != (len(prompts),):
            raise ValueError(
                f"rewards: {self.url} answered with {tuple(rewards.shape)} numbers for {len(prompts)} images"
            )
        return rewards


def _png(picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class WeightedReward:
    """The sum of several, each with its weight."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]):
        self.parts = parts

    def __call__(self, images: Tensor | None, ids: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge images: [B].

        Raises:
            ValueError: If a part returns another number of rewards.
        """
        total = torch.zeros(len(prompts))
        for weight, reward in self.parts:
            found = torch.as_tensor(reward(images, ids, prompts)).float().cpu()
            if found.shape != total.shape:
                raise ValueError(
                    f"rewards: {reward} returned {tuple(found.shape)} for {len(prompts)} images; return [B]"
                )
            total += weight * found
        return total


def reward_of(rewards: dict[str, float], prompts: Sequence[Prompt], level: str) -> WeightedReward:
    """Build the reward that a setting names.

    Args:
        rewards: Weights of: "scenes" (SceneEval's judge, in part), "scenes-strict", a URL, or a function's
            `module.name` or `file.py:name`.
        prompts: All that may be asked.
        level: Of SceneEval.

    Raises:
        ValueError: If there is no such function.

    Example:
        >>> reward_of({"scenes": 1.0}, (), "tiny").parts[0][0]
        1.0
    """
    parts: list[tuple[float, Reward]] = []
    for name, weight in rewards.items():
        if name in ("scenes", "scenes-strict"):
            parts.append((weight, SceneReward(prompts, level, partial=name == "scenes")))
        elif name.startswith(("http://", "https://")):
            parts.append((weight, ServedReward(name)))
        else:
            parts.append((weight, load_named(name)))
    return WeightedReward(parts)
