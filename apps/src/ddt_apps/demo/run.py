"""ddt demo: the whole chain on embedded data, small enough for a laptop.

runs/<name>/    config.yaml, report.html, overview.png, metrics.json
  data/         train (picture shards), train-ids (id shards)
  tokenizer/    a run of ddt train-tokenizer
  pretrain/     a run of ddt pretrain
  sft/          a run of ddt sft
  evaluation/   scores.json of each benchmark
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ddt_apps.demo.report import demo_report, overview
from ddt_apps.demo.settings import Demo
from ddt_apps.evaluation import Assistant, answers, captions, edits, language, load_model, order, reconstruction, scenes
from ddt_apps.pages.report import save_report
from ddt_apps.run.atomic import writing
from ddt_apps.run.folder import Run
from ddt_apps.run.settings import RunSettings
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import pretrain, sft
from ddt_apps.train import tokenizer as train_tokenizer
from ddt_apps.train.examples import text_lines
from ddt_apps.use.pictures import save_picture
from ddt_data import ShardDataset
from ddt_tokenizer.codec import Codec


def run_demo(demo: Demo, configs: dict[str, RunSettings]) -> None:
    """Run all stages that are not done, then measure and write the report; the settings are those of `load_demo`."""
    folder, data = demo.folder, demo.folder / "data"
    run = Run(folder, demo)
    if run.finished:
        print(f"finished before: {folder / 'report.html'}; delete {folder} to run it again")
        return
    run.start()
    todo: list[tuple[str, Callable[[], object]]] = [
        ("scenes", lambda: _scenes(data / "train", demo.scenes, demo.seed)),
        ("train-tokenizer", lambda: train_tokenizer.train(configs["tokenizer"], folder)),
        ("tokenize", lambda: _tokenize(data, folder / "tokenizer")),
        ("pretrain", lambda: pretrain.train(configs["pretrain"], folder)),
        ("sft", lambda: sft.train(configs["sft"], folder)),
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


def _measure(folder: Path, demo: Demo, configs: dict, seconds: dict[str, float]) -> None:
    started = time.monotonic()
    codec, tuned = load_model(f"{folder}/tokenizer"), load_model(f"{folder}/sft")
    drawer = load_model(f"{folder}/pretrain", demo.guidance, demo.temperature)
    train_ids, text = ShardDataset(folder / "data" / "train-ids"), text_lines(configs["pretrain"].text)
    untrained = Assistant(pretrain.build_model(configs["pretrain"], train_ids, text), codec)
    scenes_of = {"level": "tiny", "count": demo.held_out}
    drawing = {"guidance": demo.guidance, "temperature": demo.temperature}
    found = {
        reconstruction: reconstruction.evaluate(codec, reconstruction.Settings(**scenes_of), "tokenizer"),
        order: order.evaluate(codec, order.Settings(level="tiny", count=min(256, demo.held_out)), "tokenizer"),
        language: language.evaluate(drawer, language.Settings(**scenes_of), "pretrain", untrained),
        scenes: scenes.evaluate(drawer, scenes.Settings(level="tiny", pictures=1, **drawing), "pretrain"),
        edits: edits.evaluate(tuned, edits.Settings(**scenes_of), "sft"),
        answers: answers.evaluate(tuned, answers.Settings(**scenes_of), "sft"),
        captions: captions.evaluate(drawer, captions.Settings(**scenes_of), "pretrain"),
    }
    seconds["measure"] = time.monotonic() - started
    scores = {each.benchmark: each for each, _ in found.values()}
    pages = {each.benchmark: benchmark.page(each, shown) for benchmark, (each, shown) in found.items()}
    pictures = [found[benchmark][1] for benchmark in (reconstruction, scenes, edits)]
    save_report(folder / "report.html", demo_report(folder, scores, pages, seconds))
    save_picture(overview(*pictures), folder / "overview.png")
    for each in scores.values():
        each.save(folder / "evaluation" / each.benchmark)
    figures = {name: each.content for name, each in scores.items()}
    figures["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    figures["held_out_scenes"] = demo.held_out
    with writing(folder / "metrics.json") as file:
        file.write_text(json.dumps(figures, indent=2) + "\n")
