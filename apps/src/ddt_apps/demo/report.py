"""The page that the demo ends with."""

from pathlib import Path

import numpy as np

from ddt_apps.evaluation.edits import Edited
from ddt_apps.evaluation.page import Page, chapter, facts_of, spread
from ddt_apps.evaluation.reconstruction import Reconstructed
from ddt_apps.evaluation.scenes import Judged
from ddt_apps.evaluation.scores import Scores
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import columns, metrics, note, report, section, table
from ddt_apps.run.metrics import read_metrics

INTRO = (
    "Everything on this page was made on this machine, from nothing, by one command: a tokenizer learned to write each "
    "picture as {tokens} numbers, a small language model learned to read and write those numbers like words, and then "
    "drew, edited, described and answered questions about other scenes of the same kind. The easiest honest setting: "
    "{size} x {size} pixels, one or two large objects of twelve kinds on six plain backgrounds, decoding in one step. "
    "Half of the held-out scenes hold combinations that training never showed. Models this small draw soft, sometimes "
    "wrong objects; the same commands with a larger configuration train longer."
)


def demo_report(folder: Path, scores: dict[str, Scores], pages: dict[str, Page], seconds: dict[str, float]) -> str:
    """Write the page: HTML that needs nothing else.

    Args:
        folder: Of the demo.
        scores, pages: By benchmark: its scores, and what they show.
        seconds: That each stage took.
    """
    rows = [[each.benchmark, each.protocol_id, _command(folder, each)] for each in scores.values()]
    metrics_of_all = [metric for page in pages.values() for metric in page.metrics]
    sections = [
        section("In figures", "Each stage beside what a trivial method would get.", metrics(metrics_of_all)),
        *(chapter(page) for page in pages.values()),
        _curves(folder),
        section(
            "Protocols",
            "Figures may be compared only where the id is the same. The command measures the same again.",
            table(["benchmark", "protocol", "command"], rows),
        ),
        section(
            "Time",
            "Seconds of each stage in the last run of the command; a stage that was done before takes none.",
            table(["stage", "seconds"], [[stage, float(value)] for stage, value in seconds.items()]),
        ),
    ]
    codec = scores["reconstruction"]
    facts = facts_of(page.metrics[0] for page in pages.values())
    intro = INTRO.format(tokens=codec.scores["tokens"], size=codec.protocol["image_size"])
    return report("DDT: pictures as a language", intro, sections, facts, foot="Made by: ddt demo")


def overview(reconstructed: Reconstructed, judged: Judged, edited: Edited) -> np.ndarray:
    """Put the demo on one sheet, uint8 [H, W, 3]: originals, again, from the first ids, drawn, before, after."""
    across = min(12, len(reconstructed.originals))
    growing = [*reconstructed.prefixes.values(), reconstructed.drawn, reconstructed.originals]
    rows = [
        reconstructed.originals[:across],
        reconstructed.drawn[:across],
        np.stack([pictures[i] for i in range(across) for pictures in growing])[:across],
        judged.pictures[spread(range(len(judged.pictures)), across)],
        edited.sources[:across],
        edited.drawn[:across],
    ]
    framed = np.pad(np.stack(rows), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in framed])
    return sheet.repeat(3, axis=0).repeat(3, axis=1)


def _command(folder: Path, scores: Scores) -> str:
    """What measures the same again."""
    known = scores.protocol | (scores.model if scores.benchmark == "scenes" else {})
    settings = [f"{key}={known[key]}" for key in ("count", "pictures", "guidance", "temperature") if key in known]
    return " ".join(["ddt evaluate", scores.benchmark, str(folder / scores.model["name"]), "level=tiny", *settings])


def _curves(folder: Path) -> tuple[str, str]:
    tokenizer = read_metrics(folder / "tokenizer" / "metrics.csv")
    charts = [line_chart({"reconstruction": tokenizer["loss"]}, "step", "tokenizer loss")]
    for stage in ("pretrain", "sft"):
        curves = read_metrics(folder / stage / "metrics.csv")
        named = {"visual": "bits_per_visual_token", "text": "bits_per_text_token"}
        charts.append(line_chart({k: curves[v] for k, v in named.items()}, "step", f"{stage}: bits per token"))
    return section(
        "Learning", "Training loss of the three stages.", columns(*charts), note("Noise is that of batches.")
    )
