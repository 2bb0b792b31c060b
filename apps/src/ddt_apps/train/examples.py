"""Examples for the language model: id shards to sequences, drawn afresh each time a sample comes by."""

import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from ddt_apps.train.settings import InstructionTasks, PretrainTasks
from ddt_data import Mixture, ShardDataset, StepSampler, prose
from ddt_llm import Example, Sequences
from ddt_llm.sequences import Turn

PIECE = re.compile(r".{1,2000}(?:\s|$)|\S{2000}", re.DOTALL)  # as many whole words as fit


class Views(Dataset):
    """A map-style dataset of N examples: item e * N + i is sample i as drawn in epoch e, a function of (seed, item).

    For a `ShardStream` that counts epochs: each sample comes once an epoch, in another task or phrasing each time.

    Args:
        samples: Id shards.
        make: Turns a sample and a random source into an example.
        seed: Of the draws.
    """

    def __init__(self, samples: Mixture, make: Callable[[dict[str, Any], random.Random], Example], seed: int):
        self.samples, self.make, self.seed = samples, make, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        return self.make(self.samples[index % len(self.samples)], random.Random(f"{self.seed} {index}"))

    def order(self, *args: Any, **options: Any) -> StepSampler:
        """Return the order of the samples; see `Mixture.order`."""
        return self.samples.order(*args, **options)


def pretraining_example(
    sequences: Sequences, tasks: PretrainTasks, text: list[str], longest: int | None = None
) -> Callable[..., Example]:
    """Make examples `caption -> image`, `image -> caption` and plain text: `longest` tokens of a line of `text`."""

    def make(sample: dict[str, Any], rng: random.Random) -> Example:
        ids = torch.from_numpy(sample["ids"])
        task = _draw(tasks, rng, ("text_to_image", "image_to_text", "text_only"))
        if task == "text_only" and text:
            return sequences.text_only(rng.choice(text), longest)
        if "text" not in sample:
            return sequences.image_only(ids)
        if task == "image_to_text":
            return sequences.image_to_text(ids, sample["text"])
        return sequences.text_to_image("" if rng.random() < tasks.caption_dropout else sample["text"], ids)

    return make


def instruction_example(sequences: Sequences, tasks: InstructionTasks) -> Callable[..., Example]:
    """Make examples of edits, questions, pictures to draw and pictures to describe; only answers are trained."""

    def make(sample: dict[str, Any], rng: random.Random) -> Example:
        ids, meta = torch.from_numpy(sample["ids"]), sample.get("meta", {})
        task = _draw(tasks, rng, ("edit", "ask", "draw", "describe", "talk"))
        blind = rng.random() < tasks.prompt_dropout
        if task == "edit" and "target_ids" in sample:
            prompt = [] if blind else [ids, meta["edit"]["instruction"]]
            return sequences.instruction(prompt, [torch.from_numpy(sample["target_ids"])])
        if task == "ask" and meta.get("questions"):
            question = rng.choice(meta["questions"])
            return sequences.instruction([ids, question["question"]], [question["answer"]])
        if task == "talk" and (turns := conversation(sample, rng)):
            return sequences.conversation(turns)
        if task == "describe" and "text" in sample:
            return sequences.instruction([ids, "describe the picture"], [sample["text"]])
        prompt = [] if blind or "text" not in sample else [sample["text"]]
        return sequences.instruction(prompt, [ids])

    return make


def conversation(sample: dict[str, Any], rng: random.Random) -> list[Turn]:
    """Return turns about the picture of a sample, shown with the first question or drawn first; none if it has none."""
    ids, meta = torch.from_numpy(sample["ids"]), sample.get("meta", {})
    turns: list[Turn] = []
    if "text" in sample and rng.random() < 0.5:
        turns.append(([sample["text"]], [ids]))
    questions = meta.get("questions", [])
    asked = [(q["question"], q["answer"]) for q in rng.sample(questions, min(2, len(questions)))]
    if "target_ids" in sample:
        asked.append((meta["edit"]["instruction"], torch.from_numpy(sample["target_ids"])))
    for question, answer in asked:
        turns.append(([question] if turns else [ids, question], [answer]))
    return turns


def text_lines(source: str) -> list[str]:
    """Return pieces of text of up to 2,000 characters: "prose" is embedded text, else a folder of text shards, "" none.

    Raises:
        FileNotFoundError: If the shards are missing.
        ValueError: If they hold no text.
    """
    if source in ("", "prose"):
        return list(prose()) if source else []
    dataset = ShardDataset(source)
    if "text" not in dataset[0]:
        raise ValueError(f"text ('{source}') holds no text; pack a .txt or .jsonl file with: ddt data pack")
    pieces = (PIECE.findall(dataset[i]["text"]) for i in range(len(dataset)))
    return [piece.strip() for some in pieces for piece in some if piece.strip()]


def split_lines(text: list[str]) -> tuple[list[str], list[str]]:
    """Split pieces of text into those to train on and every twentieth, held out."""
    return [line for i, line in enumerate(text) if i % 20], text[::20]


def _draw(tasks: Any, rng: random.Random, names: tuple[str, ...]) -> str:
    return rng.choices(names, [getattr(tasks, name) for name in names])[0]
