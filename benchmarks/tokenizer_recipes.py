"""Recipe study: train small tokenizers that differ in one thing each, from several seeds, and measure all alike.

    ddt data scenes --out data/scenes --count 40000
    ddt train-vae small/vae data=data/scenes
    ddt data latents data/scenes --vae runs/vae/vae --out data/latents
    python benchmarks/tokenizer_recipes.py data/latents runs/vae/vae [--rows base no-start ...] [--seeds 0 1 2]

A row is configs/small/tokenizer.yaml with the row's overrides, in fewer steps. Each seed of it is a run of its own,
runs/recipe-<row>-<seed>: it resumes where it was stopped, and a finished one is only measured. The table, of means and
half the spread between seeds, goes to runs/recipes.md as well.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.progress import track

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.heldout import held_out_scenes
from ddt_apps.evaluation.order import TELLS, tells
from ddt_apps.evaluation.scenes import summary
from ddt_apps.evaluation.steps import asked_scenes, sharpness, ways_to_draw
from ddt_apps.evaluation.tokens import at_noise, from_finest, locality, patch_changes
from ddt_apps.run.config import load_config
from ddt_apps.train.tokenizer import TrainTokenizer, train
from ddt_data import Judge, render, verdict
from ddt_data.sceneeval.prompts import canvas_of
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import psnr, to_tensor, to_uint8

ROWS = {
    "base": [],
    # what makes the order
    "no-start": ["codec.start=null", "training.optimizer.rates={}"],
    "places": ["codec.start=grid", "training.optimizer.rates={}"],
    "no-prefixes": ["codec.flow.prefix_share=0"],
    "kt-off": ["codec.flow.all_share=1"],
    "kt-alone": ["codec.flow.all_share=0"],
    "only-one-step": ["codec.flow.full_noise_share=1"],
    "start-alone": ["codec.flow.prefix_share=0", "codec.flow.full_noise_share=1"],
    "causal": ["codec.encoder.causal=true"],
    "nested-late": ["training.whole_steps={half}"],
    "uniform-prefixes": ["codec.flow.prefix_counts=uniform"],
    "even-schedule": ["codec.schedule=[14,18,18,10,4]"],
    # bits
    "width-8": ["codec.quantizer.code_width=8"],
    "width-16": ["codec.quantizer.code_width=16"],
    "v8192": ["codec.quantizer.codebook_size=8192"],
    "k96": ["codec.schedule=[42,36,12,4,2]"],
    "k128": ["codec.schedule=[56,48,16,6,2]"],
    "no-rate": ["codec.quantizer.rate=0"],
    "fsq": ["codec.quantizer={kind: fsq, levels: [8, 8, 8, 5, 5]}"],
}


def measure(codec: Codec, level: str = "standard", count: int = 270) -> dict[str, float]:
    """Measure a tokenizer on `count` held-out scenes, what is read rightly on one real scene of each prompt."""
    scenes, config = held_out_scenes(level, codec.image_size, count, seed=0)
    images = to_tensor([render(s.scene, config) for s in scenes])
    ids, last, canvas = codec.encode(images), codec.num_tokens, canvas_of(level)
    judge = Judge.from_pretrained("a")
    prompts, originals = asked_scenes(level, codec.image_size, count=540, seed=0)
    real = to_tensor(originals)
    ways, sharp = ways_to_draw(codec, real, codec.encode(real)), sharpness(real)

    def right(way: str) -> tuple[float, float]:
        drawn = in_batches(way, len(real), ways[way])
        seen = read(judge, to_uint8(drawn), canvas)
        percent = summary(prompts, [verdict(*pair) for pair in zip(prompts, seen, strict=True)])["overall"]
        return percent, sharpness(drawn) / sharp

    found = {"psnr": float(psnr(_drawn(codec, ids), images).mean())}
    found["unquantized %"] = right("not quantized")[0]
    found["one step %"], found["sharp 1"] = right("1 step")
    found["8 guided %"], found["sharp 8"] = right("8 steps, all ids, guided")
    for n in (last // 8, last // 4, last // 2):
        fine = torch.cat([from_finest(codec, part, n) for part in ids.split(64)])
        coarse = _drawn(codec, ids, keep_tokens=n)
        found[f"gap {n}"] = float((psnr(coarse, images) - psnr(fine, images)).mean())
    one = to_uint8(_drawn(codec, ids, keep_tokens=1))
    found["background 1 %"] = tells(scenes, one, read(judge, one, canvas))[TELLS[0]]
    places = locality(patch_changes(codec, ids[:64]))
    found["locality fine"], found["locality coarse"] = (float(half.nanmean()) for half in places.chunk(2))
    latents = torch.cat([codec.decoder.latent_space.encode(part) for part in images.split(64)])
    middle = {
        seen: float(psnr(at_noise(codec, latents, ids, 0.5, seen), images).mean()) for seen in ("k(t)", "all", "none")
    }
    found["k(t) - all"], found["k(t) - none"] = (middle["k(t)"] - middle[name] for name in ("all", "none"))
    health = codebook_health(ids, codec.tokenizer.quantizer.codebook)
    return found | {"bits": health.bits_per_position, "dead": float(len(health.dead_positions))}


def _drawn(codec: Codec, ids: torch.Tensor, keep_tokens: int | None = None) -> torch.Tensor:
    """Draw in one step, in parts that fit the cache."""
    return torch.cat([codec.decode(part, num_steps=1, keep_tokens=keep_tokens) for part in ids.split(64)])


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Write markdown: means over seeds, and half of what lies between the smallest and the largest."""
    names = list(next(iter(rows.values()))[0])
    lines = [f"| row | seeds | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
    for row, seeds in rows.items():
        cells = []
        for name in names:
            values = [seed[name] for seed in seeds]
            digits = 2 if max(map(abs, values)) < 3 else 1
            spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.{digits}f}{spread}")
        lines.append(f"| {row} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of latents of scenes of the level `standard`")
    parser.add_argument("vae", type=Path, help="folder of their autoencoder")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all rows")
    args = parser.parse_args()
    done: dict[str, list[dict[str, float]]] = {}
    for name, seed in track([(row, seed) for row in args.rows for seed in args.seeds], "recipes"):
        overrides = [
            f"data={args.data}",
            f"vae={args.vae}",
            f"seed={seed}",
            f"name=recipe-{name}-{seed}",
            "loggers=[]",
            f"training.optimizer.steps={args.steps}",
            f"training.continuous_steps={args.steps // 5}",
            *args.set,
            *(override.replace("{half}", str(args.steps // 2)) for override in ROWS[name]),
        ]
        run = train(load_config(TrainTokenizer, "small/tokenizer", overrides))
        file = run / "measures.json"
        if not file.is_file():
            file.write_text(json.dumps(measure(Codec.from_pretrained(run)), indent=2))
        done.setdefault(name, []).append(json.loads(file.read_text()))
        Path("runs/recipes.md").write_text(table(done))
    print(f"{args.steps} steps of 48 pictures, {platform.machine()}\n\n{table(done)}")


if __name__ == "__main__":
    main()
