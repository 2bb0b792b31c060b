"""ddt rl: reinforcement learning of a language model on what it draws."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from torch.utils.data import Dataset

from ddt_apps.models import load_pair
from ddt_apps.rewards import SceneReward, reward_of
from ddt_apps.run.atomic import writing
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.settings import Reinforce
from ddt_apps.use.sheet import labelled_sheet
from ddt_data import StepSampler
from ddt_data.sceneeval.prompts import training_prompts
from ddt_data.shards.datamodule import ShardStream
from ddt_llm.every_steps import EverySteps
from ddt_llm.grpo import GRPOTraining
from ddt_tokenizer.images import to_uint8

SHOWN = 8  # prompts that are drawn again and again, for the eye


class Gallery(EverySteps):
    """Draws the same prompts with the same seeds every so many steps, into `samples/` of a run."""

    def __init__(self, folder: Path, prompts: list[str], every: int):
        self.folder, self.prompts, self.every = folder, prompts, every

    def on_train_batch_end(self, trainer: lightning.Trainer, module: GRPOTraining, *_) -> None:
        """Draw after every n-th step and the last one."""
        if self.due(trainer, or_last=True) and trainer.is_global_zero:
            found = module.lm.generate_batch(
                self.prompts, module.visual, output="image", guidance_scale=module.grpo.guidance
            )
            cells = [(to_uint8(each.images)[0], prompt) for each, prompt in zip(found, self.prompts, strict=True)]
            self.folder.mkdir(exist_ok=True)
            with writing(self.folder / f"step-{trainer.global_step:06d}.png") as file:
                labelled_sheet([cells[: SHOWN // 2], cells[SHOWN // 2 :]]).save(file, "PNG")


class Prompts(Dataset):
    """Prompts that SceneEval does not score, each category with the same share of a run.

    Raises:
        ValueError: If there are none of a category.
    """

    def __init__(self, level: str, categories: Sequence[str] = ()):
        known = training_prompts(level)
        categories = list(categories) or list(dict.fromkeys(prompt.category for prompt in known))
        groups = [[prompt for prompt in known if prompt.category == category] for category in categories]
        if not all(groups):
            raise ValueError(
                f"categories {categories} of level {level} are not all there to learn from; leave some out"
            )
        self.prompts = [prompt for group in groups for prompt in group]
        self.lengths = [len(group) for group in groups]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> str:
        return self.prompts[index].text

    def order(self, *args: Any, **options: Any) -> StepSampler:
        """Return the order of the prompts."""
        return StepSampler(self.lengths, *args, weights=[1.0] * len(self.lengths), **options)


def train(config: Reinforce, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Train, or continue, and export the model to `model/` in the run folder, which is returned; see `carry_out`.

    Raises:
        FileNotFoundError: If the model or its tokenizer are missing.
        ValueError: If rewards cannot be had or are all the same, the run is of another config, or a gradient is not
            finite.
    """
    return carry_out(config, _work, runs, only_export)


def _work(run: Run) -> Exports:
    config: Reinforce = run.config
    lm, codec = load_pair(Path(config.model), config.tokenizer and Path(config.tokenizer))
    asked = Prompts(config.level, config.categories)
    referee = SceneReward(asked.prompts, config.level, config.referee, partial=False) if config.referee else None
    reward = reward_of(config.rewards, asked.prompts, config.level)
    training = partial(GRPOTraining, grpo=config.grpo, reward=reward, visual=codec, referee=referee)
    module = training(lm, config.optimizer, config.seed)
    stream = ShardStream(asked, list, config.batch_size, config.batches, config.seed)
    shown = [asked[i * len(asked) // SHOWN] for i in range(SHOWN)]
    run.fit(module, stream, [Gallery(run.folder / "samples", shown, config.watch_every)])
    return lambda: {"model": lm}
