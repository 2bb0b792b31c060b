"""ddt demo: the whole chain on embedded data, small enough for a laptop.

runs/<name>/    config.yaml, report.html, overview.png, metrics.json
  data/         train, test (picture shards), train-ids (id shards)
  tokenizer/    a run of ddt train-tokenizer
  pretrain/     a run of ddt pretrain
  sft/          a run of ddt sft
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddt_apps.demo.measure import (
    HeldOut,
    measure_answers,
    measure_drawing,
    measure_edits,
    measure_pretraining,
    measure_tokenizer,
    named_background,
)
from ddt_apps.demo.report import demo_report, overview
from ddt_apps.models import load_language_model
from ddt_apps.pages.report import save_report
from ddt_apps.run.atomic import writing
from ddt_apps.run.config import load_config
from ddt_apps.run.folder import RUNS, Run
from ddt_apps.run.progress import StageProgress
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import pretrain, sft
from ddt_apps.train import tokenizer as train_tokenizer
from ddt_apps.train.examples import text_lines
from ddt_apps.use.pictures import save_picture
from ddt_data import ShardDataset
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor

STAGES = {  # settings of a stage are reached as, for example, tokenizer.batch_size=32
    "tokenizer": (train_tokenizer.TrainTokenizer, "tiny/tokenizer"),
    "pretrain": (pretrain.Pretrain, "tiny/pretrain"),
    "sft": (sft.Tune, "tiny/sft"),
}


@dataclass(frozen=True)
class Demo:
    """Settings of `ddt demo`; those of the stages are reached by their names."""

    name: str = "demo"  # of the run: runs/<name>
    scenes: int = 12_000  # for training
    held_out: int = 512  # for the figures; other scenes of the same kind
    seed: int = 0
    guidance: float = 1.5  # of text to image
    temperature: float = 0.7  # of text to image; at 1 a small model strays into mosaics
    stages: tuple[str, ...] = ()  # overrides of the stages, as they were given

    def __post_init__(self):
        if self.held_out < 12 or self.scenes < 12:
            raise ValueError(
                f"scenes ({self.scenes}) and held_out ({self.held_out}) must be at least 12 to show anything"
            )


def run_demo(overrides: list[str]) -> None:
    """Run all stages that are not done, then measure and write the report."""
    routed = tuple(o for o in overrides if o.split(".")[0] in STAGES)
    demo = load_config(Demo, None, [o for o in overrides if o not in routed])
    demo = replace(demo, stages=routed)
    folder, data = RUNS / demo.name, RUNS / demo.name / "data"
    forced = {
        "tokenizer": [f"data={data / 'train'}", f"name={demo.name}/tokenizer", f"seed={demo.seed}"],
        "pretrain": [f"data={data / 'train-ids'}", f"name={demo.name}/pretrain", f"seed={demo.seed}"],
        "sft": [
            f"data={data / 'train-ids'}",
            f"name={demo.name}/sft",
            f"seed={demo.seed}",
            f"model={folder / 'pretrain'}",
        ],
    }
    configs = {
        stage: load_config(cls, source, [*_of(stage, routed), *forced[stage]])
        for stage, (cls, source) in STAGES.items()
    }
    run = Run(folder, demo)
    if run.finished:
        print(f"finished before: {folder / 'report.html'}; delete {folder} to run it again")
        return
    run.start()
    todo: list[tuple[str, Callable[[], object]]] = [
        ("scenes", lambda: _scenes(data / "train", demo.scenes, demo.seed)),
        ("held-out scenes", lambda: _scenes(data / "test", demo.held_out, demo.seed + 1)),
        ("train-tokenizer", lambda: train_tokenizer.train(configs["tokenizer"])),
        ("tokenize", lambda: _tokenize(data, folder / "tokenizer")),
        ("pretrain", lambda: pretrain.train(configs["pretrain"])),
        ("sft", lambda: sft.train(configs["sft"])),
    ]
    seconds = {}
    for number, (stage, work) in enumerate(todo, 1):
        print(f"[{number}/{len(todo) + 1}] {stage}", flush=True)
        started = time.monotonic()
        work()
        seconds[stage] = time.monotonic() - started
    print(f"[{len(todo) + 1}/{len(todo) + 1}] measure and report", flush=True)
    _measure(folder, demo, configs, seconds)
    run.finish()
    print(f"open {folder / 'report.html'}")


def _of(stage: str, overrides: tuple[str, ...]) -> list[str]:
    return [o.removeprefix(f"{stage}.") for o in overrides if o.startswith(f"{stage}.")]


def _scenes(out: Path, count: int, seed: int) -> None:
    if not (out / "manifest.json").exists():
        make_scenes(out, count, level="tiny", seed=seed)


def _tokenize(data: Path, run: Path) -> None:
    ids = data / "train-ids"
    if (ids / "manifest.json").exists():
        if ShardDataset(ids).manifest.tokenizer == Codec.from_pretrained(run).identity:
            return
        shutil.rmtree(ids)  # of a tokenizer that was trained again since
    tokenize_shards(data / "train", run, ids)


@torch.inference_mode()
def _measure(folder: Path, demo: Demo, configs: dict, seconds: dict[str, float]) -> None:
    codec = Codec.from_pretrained(folder / "tokenizer")
    train, train_ids = ShardDataset(folder / "data" / "train"), ShardDataset(folder / "data" / "train-ids")
    some = range(min(2000, len(train)))
    mean_image = to_tensor([train[i]["image"] for i in some]).mean(0)
    seen_ids = torch.stack([torch.from_numpy(train_ids[i]["ids"]) for i in range(len(train_ids))])
    held = HeldOut.load(ShardDataset(folder / "data" / "test"), codec)
    drawer, assistant = load_language_model(folder / "pretrain"), load_language_model(folder / "sft")
    untrained = pretrain.build_model(configs["pretrain"], train_ids, text_lines(configs["pretrain"].text))
    prompts = [s["text"] for s in held.samples if named_background(s["text"])][:256]

    with StageProgress("measure", 5, unit="parts") as progress:
        figures = measure_tokenizer(held, codec, mean_image)
        progress.update(1)
        figures |= measure_pretraining(held, untrained, drawer, seen_ids)
        progress.update(2)
        found, drawn = measure_drawing(drawer, codec, prompts, demo.guidance, demo.temperature)
        figures |= found
        progress.update(3)
        found, edited = measure_edits(held, assistant, codec, count=min(256, len(held.samples)))
        figures |= found
        progress.update(4)
        found, answers = measure_answers(held, assistant, train_ids)
        figures |= found
        progress.update(5)
    figures["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    figures["held_out_scenes"] = len(held.samples)
    page = demo_report(folder, figures, held, codec, list(zip(prompts, drawn, strict=True)), edited, answers)
    save_report(folder / "report.html", page)
    save_picture(overview(figures, held, codec, drawn, edited), folder / "overview.png")
    with writing(folder / "metrics.json") as file:
        file.write_text(json.dumps(figures, indent=2) + "\n")
