"""The page that the demo ends with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.demo.measure import HeldOut
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import Metric, answers, columns, grid, metrics, note, pairs, report, section, strip, table
from ddt_apps.run.metrics import read_metrics
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_uint8

INTRO = (
    "Everything on this page was made on this machine, from nothing, by one command: a tokenizer learned to write each "
    "picture as {num_tokens} numbers, a small language model learned to read and write those numbers like words, and "
    "then drew, edited and answered questions about other scenes of the same kind."
)
SETTING = (
    "The easiest honest setting: pictures of {size} x {size} pixels, one or two large objects of twelve kinds on six "
    "plain backgrounds, {num_tokens} ids of {codebook} an image, decoding in one step. All figures are on {held} "
    "held-out scenes. Models this small draw soft, sometimes wrong objects; the same commands with a larger "
    "configuration train longer."
)


def figures_table(f: dict[str, Any]) -> list[Metric]:
    """Set each figure of metrics.json beside its trivial baseline."""
    bits = f["lm_bits_per_token"]
    return [
        Metric(
            "Reconstruction",
            f["reconstruction_psnr"],
            f["reconstruction_psnr_mean_image"],
            "the mean image",
            "dB",
            "PSNR of pictures drawn again from their ids, in one step.",
        ),
        Metric(
            "Bits per visual token",
            bits["after"],
            bits["unigram"],
            "unigrams: how often each id occurs there",
            "bits",
            f"How well the language model foretells ids from the caption; {bits['before']:.2f} before training.",
            lower_is_better=True,
        ),
        Metric(
            "The caption matters",
            bits["after"],
            bits["wrong_caption"],
            "another scene's caption",
            "bits",
            "The same bits when the caption is of another scene.",
            lower_is_better=True,
        ),
        Metric(
            "Background drawn as asked",
            100 * f["background_match"],
            100 * f["background_match_chance"],
            "always the most frequent",
            "%",
            "Share of drawn pictures whose background has the colour that the prompt names.",
        ),
        Metric(
            "Edits",
            f["edit_l1"],
            f["edit_l1_copy_input"],
            "leaving the picture as it is",
            "L1 x 100",
            f"Distance of the edited picture to the exact result; {f['edit_l1_tokenizer_ceiling']:.2f} at best, "
            "through this tokenizer.",
            lower_is_better=True,
        ),
        Metric(
            "Answers",
            100 * f["answer_accuracy"],
            100 * f["answer_accuracy_blind"],
            "best guess without the picture",
            "%",
            "Exact matches.",
        ),
    ]


def demo_report(
    folder: Path,
    figures: dict[str, Any],
    held: HeldOut,
    codec: Codec,
    drawn: list[tuple[str, Tensor]],
    edited: Tensor,
    given: list[str],
) -> str:
    """Write the page: HTML that needs nothing else."""
    seconds = figures["seconds"]
    sizes = {
        "size": codec.image_size,
        "num_tokens": codec.num_tokens,
        "codebook": codec.codebook_size,
        "held": figures["held_out_scenes"],
    }
    sections = [
        section("In figures", "Each stage beside what a trivial method would get.", metrics(figures_table(figures))),
        _reconstructions(figures, held, codec),
        _prefixes(figures, held, codec),
        section(
            "Text to image",
            "The language model reads the caption, writes the ids one after the other, and the decoder draws them.",
            grid([(image, prompt) for prompt, image in drawn[:21]]),
        ),
        _edits(figures, held, edited),
        _answers(figures, held, given),
        _curves(folder),
        section(
            "Time",
            "Seconds of each stage in the last run of the command; a stage that was done before takes none.",
            table(["stage", "seconds"], [[stage, float(value)] for stage, value in seconds.items()]),
        ),
    ]
    facts = {
        "reconstruction": f"{figures['reconstruction_psnr']:.1f} dB",
        "backgrounds as asked": f"{100 * figures['background_match']:.0f} %",
        "answers right": f"{100 * figures['answer_accuracy']:.0f} %",
        "ids an image": f"{codec.num_tokens}",
    }
    intro = f"{INTRO.format(**sizes)} {SETTING.format(**sizes)}"
    return report("DDT: pictures as a language", intro, sections, facts, foot="Made by: ddt demo")


def overview(figures: dict[str, Any], held: HeldOut, codec: Codec, drawn: Tensor, edited: Tensor) -> np.ndarray:
    """Put the demo on one sheet, uint8 [H, W, 3]: originals, again, from the first ids, drawn, before, after."""
    across = min(12, len(drawn), len(edited))
    kept = figures["prefix_tokens"]
    prefixes = []
    for row in range(across):
        shown = [codec.decode(held.ids[row : row + 1], keep_tokens=n)[0] for n in kept]
        prefixes += [*shown, held.images[row]]
    rows = [
        held.images[:across],
        codec.decode(held.ids[:across]),
        torch.stack(prefixes[:across]),
        drawn[:across],
        held.images[:across],
        edited[:across],
    ]
    pictures = np.stack([to_uint8(row) for row in rows])  # [rows, across, h, w, 3]
    side = codec.image_size
    framed = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(len(rows) * (side + 2), across * (side + 2), 3)
    return sheet.repeat(3, axis=0).repeat(3, axis=1)


def _reconstructions(figures: dict[str, Any], held: HeldOut, codec: Codec) -> tuple[str, str]:
    again = codec.decode(held.ids[:9])
    rows = [
        [(image, "original") for image in held.images[:9]],
        [(image, "again") for image in again],
    ]
    text = (
        f"Held-out scenes, and the same drawn from their {codec.num_tokens} ids alone. "
        f"{100 * figures['codebook_usage']:.0f} % of the codebook is in use, {figures['codes_per_position']:.0f} "
        f"different codes at a position on average, {figures['code_bits_per_position']:.1f} bits each. "
        f"Eight denoising steps instead of one give {figures['reconstruction_psnr_8_steps']:.1f} dB."
    )
    return section("Reconstructions", text, strip(rows))


def _prefixes(figures: dict[str, Any], held: HeldOut, codec: Codec) -> tuple[str, str]:
    kept = figures["prefix_tokens"]
    rows = []
    for row in range(4):
        drawn = [codec.decode(held.ids[row : row + 1], keep_tokens=n)[0] for n in kept]
        labels = [f"{n} id{'s' if n > 1 else ''}" for n in kept]
        rows.append([*zip(drawn, labels, strict=True), (held.images[row], "original")])
    curve = line_chart(
        {"PSNR": (kept, figures["prefix_psnr"])}, "ids kept, from the coarse end", "PSNR in dB", markers=True
    )
    text = "A picture from the first ids that a language model writes: the coarse ones come first, each adds detail."
    return section("From coarse to fine", text, columns(strip(rows), curve))


def _edits(figures: dict[str, Any], held: HeldOut, edited: Tensor) -> tuple[str, str]:
    rows, seen = [], set()
    for before, after, truth, sample in zip(held.images, edited, held.targets, held.samples, strict=False):
        kind = sample["meta"]["edit"]["kind"]
        if (kind, len(rows) // 6) not in seen and len(rows) < 12:
            seen.add((kind, len(rows) // 6))
            rows.append((before, sample["meta"]["edit"]["instruction"], after, truth))
    by_kind = [[kind, v["edit_l1"], v["copy"]] for kind, v in figures["edit_l1_by_kind"].items()]
    text = "The model reads a picture's ids and an instruction, and writes the ids of the edited picture."
    return section(
        "Edits", text, pairs(rows), table(["kind", "L1 x 100 to the exact result", "leaving it as it is"], by_kind)
    )


def _answers(figures: dict[str, Any], held: HeldOut, given: list[str]) -> tuple[str, str]:
    asked = [
        (image, s["meta"]["questions"][0])
        for image, s in zip(held.images, held.samples, strict=True)
        if s["meta"]["questions"]
    ]
    cards = [(image, [(q["question"], answer, q["answer"])]) for (image, q), answer in zip(asked, given, strict=True)][
        :12
    ]
    by_kind = [[kind, 100 * v["model"], 100 * v["blind"]] for kind, v in figures["answer_accuracy_by_kind"].items()]
    text = "The model reads a picture's ids and a question, and writes the answer."
    return section("Questions", text, answers(cards), table(["kind", "right %", "blind guess %"], by_kind))


def _curves(folder: Path) -> tuple[str, str]:
    tokenizer = read_metrics(folder / "tokenizer" / "metrics.csv")
    charts = [line_chart({"reconstruction": tokenizer["loss"]}, "step", "tokenizer loss")]
    for stage in ("pretrain", "sft"):
        curves = read_metrics(folder / stage / "metrics.csv")
        shown = {"visual": "bits_per_visual_token", "text": "bits_per_text_token"}
        charts.append(line_chart({k: curves[v] for k, v in shown.items()}, "step", f"{stage}: bits per token"))
    return section(
        "Learning", "Training loss of the three stages.", columns(*charts), note("Noise is that of batches.")
    )
