"""ddt sft: instruction tuning on edits and questions, with the loss on the answers alone."""

from functools import partial
from pathlib import Path

from ddt_apps.models import load_language_model
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.examples import Views, instruction_example
from ddt_apps.train.language import fit_language_model, fitting_examples
from ddt_apps.train.settings import Tune
from ddt_data import open_shards
from ddt_llm import MultimodalLM


def train(config: Tune, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Tune, or continue, and export the model to `model/` in the run folder, which is returned; see `carry_out`.

    Raises:
        FileNotFoundError: If the id shards or the model are missing.
        ValueError: If the ids are of another tokenizer than the model was trained on, the run is of another config, or
            a gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def begin(config: Tune, device: str = "cpu") -> tuple[MultimodalLM, Views]:
    """Load the model as it is before the first step, and what it learns.

    Args:
        device: "meta" loads it without its weights.

    Raises:
        FileNotFoundError: If the id shards or the model are missing.
        ValueError: If the ids are of another tokenizer than the model was trained on, or none fit.
    """
    lm = load_language_model(config.model, device=device, bits=config.bits)
    dataset = open_shards(config.data, tokenizer=lm.visual_fingerprint)
    tuned = MultimodalLM(lm.model, lm.text_tokenizer, "instruction", lm.visual_fingerprint)
    return tuned, fitting_examples(tuned, config, dataset, partial(instruction_example, tasks=config.tasks))


def _work(run: Run) -> Exports:
    return fit_language_model(run, *begin(run.config, run.builds_on))
