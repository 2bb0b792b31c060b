"""ddt adapt: a language model that writes in order learns to denoise, and keeps what it can."""

from functools import partial
from pathlib import Path

from ddt_apps.models import load_language_model
from ddt_apps.run.carrying_out import RUNS, Exports, carry_out
from ddt_apps.run.folder import Run
from ddt_apps.train.examples import Views, instruction_example, pretraining_example, split_lines, text_lines
from ddt_apps.train.language import fit_language_model, fitting_examples, longest_example
from ddt_apps.train.settings import Adapt
from ddt_data import open_shards
from ddt_llm import MultimodalLM
from ddt_llm.denoise_training import DenoiseTraining
from ddt_llm.expansion import add_mask


def train(config: Adapt, runs: Path = RUNS, only_export: bool = False) -> Path:
    """Adapt, or continue, and export the model to `model/` in the run folder, which is returned; see `carry_out`.

    Raises:
        FileNotFoundError: If the id shards or the model are missing.
        ValueError: If the ids are of another tokenizer than the model was trained on, the model cannot denoise, blocks
            do not fit, the run is of another config, or a gradient is not finite.
    """
    return carry_out(config, _work, runs, only_export)


def begin(config: Adapt, device: str = "cpu") -> tuple[MultimodalLM, Views]:
    """Load the model, with a `<v_mask>`, as it is before the first step, and what it learns.

    Args:
        device: "meta" loads it without its weights.

    Raises:
        FileNotFoundError: If the id shards or the model are missing.
        ValueError: If the ids are of another tokenizer than the model was trained on, or none fit.
    """
    loaded = load_language_model(config.model, device=device, bits=config.bits)
    dataset = open_shards(config.data, tokenizer=loaded.visual_fingerprint)
    config.denoise.of_image(loaded.vocabulary.num_tokens)  # refuses what it refuses
    model, text_tokenizer = add_mask(loaded.model, loaded.text_tokenizer)
    config.denoise.record(model.config)
    lm = MultimodalLM(model, text_tokenizer, loaded.template, loaded.visual_fingerprint)
    make = partial(instruction_example, tasks=config.tuned_tasks)
    if lm.template == "caption":
        text = text_lines(config.text)
        text = text if config.retention_limit is None else split_lines(text)[0]
        make = partial(pretraining_example, tasks=config.tasks, text=text, longest=longest_example(lm, config))
    return lm, fitting_examples(lm, config, dataset, make)


def _work(run: Run) -> Exports:
    config: Adapt = run.config
    lm, examples = begin(config, run.builds_on)
    training = partial(DenoiseTraining, denoise=config.denoise, adapt=config.adapt, eos=lm.sequences.eos)
    return fit_language_model(run, lm, examples, training)
