"""ddt rl: reinforcement learning of a language model on what it draws."""

from functools import partial
from pathlib import Path

import lightning

from ddt_apps.models import load_pair
from ddt_apps.run.atomic import writing
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.rewards import SceneReward, reward_of
from ddt_apps.train.settings import Reinforce
from ddt_apps.use.sheet import labelled_sheet
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
    prompts = [
        each for each in training_prompts(config.level) if not config.categories or each.category in config.categories
    ]
    if not prompts:
        raise ValueError(f"categories {list(config.categories)} of level {config.level} have no prompts to learn from")
    texts = [prompt.text for prompt in prompts]
    referee = SceneReward(prompts, config.level, config.referee, partial=False) if config.referee else None
    reward = reward_of(config.rewards, prompts, config.level)
    training = partial(GRPOTraining, grpo=config.grpo, reward=reward, visual=codec, referee=referee)
    module = training(lm, config.optimizer, config.seed)
    stream = ShardStream(texts, list, config.batch_size, config.batches, config.seed)
    shown = texts[:: max(1, len(texts) // SHOWN)][:SHOWN]
    run.fit(module, stream, [Gallery(run.folder / "samples", shown, config.watch_every)])
    return lambda: {"model": lm}
