"""The demo's figures: each stage on held-out scenes, beside what a trivial method gets."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.evaluation import pixels
from ddt_data import ShardDataset
from ddt_data.sceneeval.verdicts import background_of
from ddt_llm import MultimodalLM
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import to_tensor, to_uint8


def psnr(images: Tensor, references: Tensor) -> float:
    """Mean PSNR in dB."""
    return float(pixels.psnr(images, references).mean())


def l1(images: Tensor, references: Tensor) -> float:
    """Mean L1 in percent of the range."""
    return float(pixels.l1(images, references).mean())


@dataclass
class HeldOut:
    """Held-out scenes with their ids: pictures [N, 3, H, W], ids [N, K], and the same after each scene's edit."""

    samples: list[dict[str, Any]]
    images: Tensor
    ids: Tensor
    targets: Tensor
    target_ids: Tensor

    @classmethod
    def load(cls, shards: ShardDataset, codec: Codec) -> "HeldOut":
        """Read all samples of picture shards and encode them."""
        samples = [shards[i] for i in range(len(shards))]
        images = to_tensor([sample["image"] for sample in samples])
        targets = to_tensor([sample["target"] for sample in samples])
        return cls(samples, images, codec.encode(images), targets, codec.encode(targets))


def measure_tokenizer(held: HeldOut, codec: Codec, mean_image: Tensor) -> dict[str, Any]:
    """Reconstruction, prefixes from the coarse end, and codebook health."""
    kept = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < codec.num_tokens] + [codec.num_tokens]
    health = codebook_health(held.ids, codec.tokenizer.quantizer.codebook)
    return {
        "reconstruction_psnr": psnr(codec.decode(held.ids), held.images),
        "reconstruction_psnr_8_steps": psnr(codec.decode(held.ids, num_steps=8), held.images),
        "reconstruction_psnr_mean_image": psnr(mean_image.expand_as(held.images), held.images),
        "prefix_tokens": kept,
        "prefix_psnr": [psnr(codec.decode(held.ids, keep_tokens=n), held.images) for n in kept],
        "codebook_usage": health.usage,
        "codes_per_position": health.codes_per_position,
        "code_bits_per_position": health.bits_per_position,
        "code_effective_dimensions": health.effective_dimensions,
    }


def measure_pretraining(held: HeldOut, before: MultimodalLM, after: MultimodalLM, train_ids: Tensor) -> dict[str, Any]:
    """Bits per visual token given the caption: before, after, with another scene's caption, and of unigrams."""
    captions = [sample["text"] for sample in held.samples]
    wrong = captions[1:] + captions[:1]
    sequences = after.sequences
    right = [sequences.text_to_image(text, ids) for text, ids in zip(captions, held.ids, strict=True)]
    mixed = [sequences.text_to_image(text, ids) for text, ids in zip(wrong, held.ids, strict=True)]
    size = after.vocabulary.codebook_size
    counts = torch.stack([torch.bincount(column, minlength=size) for column in train_ids.T]).double() + 0.1
    unigram = -(counts / counts.sum(1, keepdim=True)).log2()
    return {
        "lm_bits_per_token": {
            "before": float(before.score(right).bits_per_visual_token),
            "after": float(after.score(right).bits_per_visual_token),
            "wrong_caption": float(after.score(mixed).bits_per_visual_token),
            "unigram": float(unigram.gather(1, held.ids.T).mean()),
        }
    }


def measure_drawing(
    lm: MultimodalLM, codec: Codec, prompts: list[str], guidance: float, temperature: float
) -> tuple[dict[str, Any], Tensor]:
    """Share of drawn pictures whose background has the colour that the prompt named; and the pictures."""
    answers = lm.generate_batch(prompts, codec, output="image", guidance_scale=guidance, temperature=temperature)
    drawn = torch.cat([answer.images for answer in answers])
    asked = [named_background(prompt) for prompt in prompts]
    got = [background_of(picture) for picture in to_uint8(drawn)]
    hits = [a == g for a, g in zip(asked, got, strict=True) if a]
    chance = max(Counter(name for name in asked if name).values()) / len(hits)
    return {"background_match": sum(hits) / len(hits), "background_match_chance": chance}, drawn


def named_background(caption: str) -> str | None:
    """Find the background's colour in a caption, None if it names none."""
    words = caption.split()
    return words[words.index("background") - 1] if "background" in words else None


def measure_edits(held: HeldOut, lm: MultimodalLM, codec: Codec, count: int) -> tuple[dict[str, Any], Tensor]:
    """L1 of edited pictures to the exact targets, beside leaving the picture as it is; and the pictures."""
    prompts = [[ids, s["meta"]["edit"]["instruction"]] for ids, s in zip(held.ids[:count], held.samples, strict=False)]
    answers = lm.generate_batch(prompts, codec, output="image", temperature=0.0)
    drawn = torch.cat([answer.images for answer in answers])
    sources, targets = held.images[:count], held.targets[:count]
    kinds = [sample["meta"]["edit"]["kind"] for sample in held.samples[:count]]
    by_kind = {}
    for kind in sorted(set(kinds)):
        rows = torch.tensor([k == kind for k in kinds])
        by_kind[kind] = {"edit_l1": l1(drawn[rows], targets[rows]), "copy": l1(sources[rows], targets[rows])}
    return {
        "edit_l1": l1(drawn, targets),
        "edit_l1_copy_input": l1(sources, targets),
        "edit_l1_tokenizer_ceiling": l1(codec.decode(held.target_ids[:count]), targets),
        "edit_l1_by_kind": by_kind,
    }, drawn


def measure_answers(held: HeldOut, lm: MultimodalLM, train: ShardDataset) -> tuple[dict[str, Any], list[str]]:
    """Exact match of answers, beside the best answer that can be had without the picture; and the answers."""
    asked = [(row, q) for row, sample in enumerate(held.samples) for q in sample["meta"]["questions"][:1]]
    answers = lm.generate_batch(
        [[held.ids[row], q["question"]] for row, q in asked], output="text", temperature=0.0, max_text_tokens=6
    )
    given = [answer.text.strip() for answer in answers]
    # The blind guess knows each question's most frequent answer in the training set, or its kind's.
    frequent: dict[str, Counter] = {}
    for i in range(min(len(train), 4000)):
        for q in train[i]["meta"]["questions"]:
            for key in (q["question"], q["kind"]):
                frequent.setdefault(key, Counter())[q["answer"]] += 1
    guesses = [(frequent.get(q["question"]) or frequent[q["kind"]]).most_common(1)[0][0] for _, q in asked]
    truth = [q["answer"] for _, q in asked]
    by_kind: dict[str, list[tuple[bool, bool]]] = {}
    for (_, q), answer, guess in zip(asked, given, guesses, strict=True):
        by_kind.setdefault(q["kind"], []).append((answer == q["answer"], guess == q["answer"]))
    return {
        "answer_accuracy": float(np.mean([a == b for a, b in zip(given, truth, strict=True)])),
        "answer_accuracy_blind": float(np.mean([a == b for a, b in zip(guesses, truth, strict=True)])),
        "answer_accuracy_by_kind": {
            kind: dict(zip(("model", "blind"), np.mean(rows, axis=0).tolist(), strict=True))
            for kind, rows in sorted(by_kind.items())
        },
    }, given
