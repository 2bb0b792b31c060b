"""Recipe study: train small tokenizers that differ in one thing each, and measure all of them in the same way.

    ddt data scenes --out data/scenes --count 60000
    python benchmarks/tokenizer_recipes.py data/scenes [--rows base adamw ...] [--steps 200] [--set key=value ...]

A row is configs/small/tokenizer.yaml as it was when the study began (`BEGINNING`) with the row's overrides. Each is a
run of its own, runs/recipe-<row>: it resumes where it was stopped, and a finished one is only measured. The table goes
to runs/recipes.md as well.
"""

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pairs import cpu_seconds
from rich.progress import track
from torch import Tensor

from ddt_apps.evaluation.batches import read
from ddt_apps.evaluation.heldout import held_out_scenes
from ddt_apps.evaluation.models import prefixes_of
from ddt_apps.evaluation.scenes import Settings, real_pictures, summary
from ddt_apps.evaluation.tokens import from_finest, locality, patch_changes, plain_patch_codes
from ddt_apps.run.config import load_config
from ddt_apps.train.tokenizer import TrainTokenizer, train
from ddt_data import Judge, load_prompts, render, verdict
from ddt_data.sceneeval.prompts import canvas_of
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import psnr, to_tensor, to_uint8

BEGINNING = [
    "codec.quantizer.codebook_size=512",
    "codec.quantizer.rate=0",
    "codec.schedule=[38,14,6,4,2]",
    "codec.flow.time_shift=4",
    "codec.flow.own_estimates=0.75",
]
ROWS = {
    "base": [],
    # how queries start
    "start-anywhere": ["codec.start=null"],
    "spatial": ["codec.encoder.mode=spatial"],
    # optimizer, continuous start
    "adamw": ["training.optimizer.optimizer=adamw", "training.optimizer.lr=2e-3"],
    "quantized-from-start": ["training.continuous_steps=0"],
    # noise and loss
    "noise-20": ["codec.flow.full_noise_share=0.2"],
    "noise-100": ["codec.flow.full_noise_share=1.0"],
    "shift-1": ["codec.flow.time_shift=1.0"],
    "shift-8": ["codec.flow.time_shift=8.0"],
    "velocity-loss": ["codec.flow.prediction=velocity", "codec.flow.own_estimates=0"],
    "no-own-estimates": ["codec.flow.own_estimates=0"],
    "only-own-estimates": ["codec.flow.own_estimates=1"],
    "no-prefixes": ["codec.flow.coarse_share=0"],
    "prefixes-60": ["codec.flow.coarse_share=0.6"],
    "uniform-schedule": ["codec.schedule=[64]"],
    "late-schedule": ["codec.schedule=[2,4,6,14,38]"],
    "hide-when-clean": ["codec.schedule=[54,4,2,1,1,1,1,0,0,0]"],
    # bits
    "k16": ["codec.schedule=[16]"],
    "k32": ["codec.schedule=[32]"],
    "v256": ["codec.quantizer.codebook_size=256"],
    "v2048": ["codec.quantizer.codebook_size=2048"],
    "fsq": [
        "codec.quantizer.kind=fsq",
        "codec.quantizer.levels=[8,8,8]",
    ],
    # codebook
    "rate": ["codec.quantizer.rate=0.003"],
    "rate-v2048": ["codec.quantizer.rate=0.003", "codec.quantizer.codebook_size=2048"],
    "random-replacement": ["codec.quantizer.replacement=random"],
    "diversity": ["codec.quantizer.diversity=0.02"],
    # network
    "one-way": ["codec.encoder.attention=one_way", "codec.start=null"],
    "encoder-patch-4": ["codec.encoder.patch_size=4"],
    "decoder-patch-16": ["codec.network.patch_size=16"],
}


@dataclass
class Measures:
    """One tokenizer's figures on held-out scenes."""

    psnr: float  # drawn in one step, dB
    psnr_8: float  # in 8 Euler steps
    psnr_25: float
    ceiling: float  # percent of SceneEval's real pictures right after encoding and decoding
    usage: float  # share of the codebook in use over 4,096 scenes
    dimensions: float  # effective, of the codebook
    codes: float  # distinct ones at one position
    bits: float  # entropy at one position
    white_codes: float  # distinct ones at one position while the patch that it changes most is plain white
    locality: float  # share of what a swapped token changes that lies in one patch
    coarse: dict[int, float]  # PSNR from the n coarsest ids
    fine: dict[int, float]  # and from the n finest


def measure(codec: Codec, level: str = "standard", count: int = 512) -> Measures:
    """Measure a tokenizer on `count` held-out scenes, the ceiling on one picture a prompt."""
    scenes, config = held_out_scenes(level, codec.image_size, count, seed=0)
    images = to_tensor([render(s.scene, config) for s in scenes])
    ids = codec.encode(images)
    drawn = decoded(codec, ids, num_steps=1)

    def score(**settings: int) -> float:
        return float(psnr(decoded(codec, ids, **settings), images).mean())

    prompts = load_prompts(level)
    real = real_pictures(prompts, Settings(level=level), codec.image_size)
    again = to_uint8(decoded(codec, codec.encode(to_tensor(real)), num_steps=1))
    seen = read(Judge.from_pretrained("a"), again, canvas_of(level))
    health = codebook_health(ids, codec.tokenizer.quantizer.codebook)
    usage = codebook_usage(codec, level)
    changes = patch_changes(codec, ids[:64])
    kept = prefixes_of(codec)
    return Measures(
        psnr=float(psnr(drawn, images).mean()),
        psnr_8=score(num_steps=8),
        psnr_25=score(num_steps=25),
        ceiling=summary(prompts, [verdict(p, s) for p, s in zip(prompts, seen, strict=True)])["overall"],
        usage=usage,
        dimensions=health.effective_dimensions,
        codes=health.codes_per_position,
        bits=health.bits_per_position,
        white_codes=plain_patch_codes(ids, images, changes),
        locality=float(locality(changes).nanmean()),
        coarse={n: score(num_steps=1, keep_tokens=n) for n in kept},
        fine={n: float(psnr(from_finest(codec, ids, n), images).mean()) for n in kept},
    )


def codebook_usage(codec: Codec, level: str, count: int = 4096) -> float:
    """Share of the codebook that `count` held-out scenes use; fewer scenes cannot use a large one whole."""
    scenes, config = held_out_scenes(level, codec.image_size, count, seed=1)
    used = torch.zeros(codec.codebook_size, dtype=torch.bool)
    for first in range(0, count, 256):
        used[codec.encode(to_tensor([render(s.scene, config) for s in scenes[first : first + 256]]))] = True
    return float(used.float().mean())


def decoded(codec: Codec, ids: Tensor, **settings: int) -> Tensor:
    """Draw in parts that fit the cache."""
    return torch.cat([codec.decoder.decode(part, **settings) for part in ids.split(64)])


def table(rows: dict[str, tuple[list[str], float, Measures]]) -> str:
    """Write markdown."""
    names = "one step|8 steps|25 steps|ceiling %|usage %|dims|codes/pos|bits/pos|white codes|locality"
    lines = [f"| row | overrides | CPU min |{names}|", "|" + "---|" * (4 + names.count("|"))]
    for name, (overrides, minutes, m) in rows.items():
        figures = [m.psnr, m.psnr_8, m.psnr_25, m.ceiling, 100 * m.usage, m.dimensions, m.codes, m.bits, m.white_codes]
        cells = [*(f"{value:.1f}" for value in figures), f"{m.locality:.2f}"]
        said = " ".join(f"`{part}`" for part in overrides) or "none"
        lines.append(f"| {name} | {said} | {minutes:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of picture shards of the level `standard`")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--scenes", type=int, default=512, help="held-out ones that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all rows")
    args = parser.parse_args()
    done: dict[str, tuple[list[str], float, Measures]] = {}
    for name in track(args.rows, "recipes"):
        continuous = min(200, args.steps * 11 // 20)  # a short run must leave the plateau before it is quantized
        common = [
            f"data={args.data}",
            f"seed={args.seed}",
            f"training.optimizer.steps={args.steps}",
            f"training.continuous_steps={continuous}",
        ]
        config = load_config(
            TrainTokenizer, "small/tokenizer", [*common, f"name=recipe-{name}", *BEGINNING, *args.set, *ROWS[name]]
        )
        started = cpu_seconds()
        run = train(config)
        minutes = (cpu_seconds() - started) / 60  # of the last sitting, if it was interrupted
        file = run / "measures.json"
        if not file.is_file():
            measures = measure(Codec.from_pretrained(run), count=args.scenes)
            file.write_text(json.dumps({"minutes": minutes, **asdict(measures)}, indent=2))
        values = json.loads(file.read_text())
        done[name] = (ROWS[name], values.pop("minutes"), Measures(**values))
        Path("runs/recipes.md").write_text(table(done))
    print(f"{args.steps} steps of {config.batch_size} pictures, seed {args.seed}, {platform.machine()}\n")
    print(table(done))


if __name__ == "__main__":
    main()
