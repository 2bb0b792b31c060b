"""Train a judge of SceneEval: the small detector that reads a scene back from its picture.

Needed only to change the judges. They were made by

    pip install ./packages/ddt-data rich==15.0.0
    python packages/ddt-data/scripts/train_judge.py a.safetensors --seed 1
    npm install @iconify-json/emojione@1.2.3 && pip install resvg_py==0.5.0
    python packages/ddt-data/scripts/train_judge.py b.safetensors --seed 2 --emojione node_modules

Judge b also learns from the drawings of EmojiOne 2.3 (CC-BY-4.0, not embedded), so that it does not share all habits of
judge a. Prints figures on fresh scenes at the end.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from damage import damage
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ddt_data.sceneeval.judge import STRIDE, Judge
from ddt_data.scenes.nouns import BACKGROUNDS, COLOURS, NOUNS, STYLES
from ddt_data.scenes.sprites import load_sprites, load_tinted, tint

BATCH = 48  # pictures of 64 px; a quarter as many of 128 px
SMALLEST, LARGEST = 12, 46  # sides of things, pixels


@dataclass(frozen=True)
class Thing:
    """What the judge is to find: noun and colour by their numbers (colour -1: natural), place in pixels."""

    noun: int
    colour: int
    x: float
    y: float
    size: int


class Pictures(IterableDataset):
    """Endless batches of damaged pictures with what is on them."""

    def __init__(self, seed: int, extra: Path | None):
        self.seed, self.extra = seed, extra

    def __iter__(self) -> Iterator[tuple[Tensor, list[list[Thing]]]]:
        step = 0
        while True:
            rng = random.Random(f"judge {self.seed} {step}")
            noise = np.random.default_rng([self.seed, step])
            side, count = (128, BATCH // 4) if step % 4 == 3 else (64, BATCH)
            drawn = [draw(rng, noise, side, self.extra) for _ in range(count)]
            pictures = np.stack([picture for picture, _ in drawn])
            order = noise.permutation(count)
            # A quarter of the batch stays clean, the rest is damaged; a lot has one blur and scale.
            for lot, part in enumerate(np.array_split(order, 8)):
                level = ("none", "none", "light", "medium", "medium", "heavy", "heavy", "heavy")[lot]
                pictures[part] = damage(pictures[part], level, noise)
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield images, [things for _, things in drawn]
            step += 1


@cache
def sprites(size: int, colour: str | None) -> NDArray[np.uint8]:
    """All embedded sprites at one size, kept: there are more sizes than `load_sprites` keeps."""
    return load_tinted(colour, size) if colour else load_sprites(size)


@cache
def emojione(folder: Path, size: int) -> NDArray[np.uint8]:
    """Sprites of EmojiOne at one size, [N, size, size, 4]; nouns that it lacks are empty."""
    from make_sprites import ICONS, rasterise

    icons = json.loads((folder / "@iconify-json" / "emojione" / "icons.json").read_text())
    known = icons["icons"].keys() | icons.get("aliases", {}).keys()
    drawn = np.zeros((len(NOUNS), size, size, 4), np.uint8)
    for n, noun in enumerate(NOUNS):
        if ICONS.get(noun, noun) in known:
            cell = rasterise(icons, noun).convert("RGBa").resize((size, size), Image.Resampling.HAMMING)
            drawn[n] = np.asarray(cell)
    return drawn


@cache
def emojione_tinted(folder: Path, size: int, colour: str) -> NDArray[np.uint8]:
    """The same, tinted."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(tint(emojione(folder, size), colour))


def background(rng: random.Random, noise: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], str | None]:
    """A plain background mostly; or a blend of two colours, stripes, or a soft cloud of colours."""
    if rng.random() < 0.7:
        name = rng.choice(list(BACKGROUNDS))
        return np.full((side, side, 3), BACKGROUNDS[name], np.uint8), name
    kind = rng.choice(("blend", "stripes", "cloud"))
    colours = noise.uniform(0, 255, (2, 3))
    if kind == "cloud":
        cloud = Image.fromarray(noise.integers(0, 256, (rng.choice((3, 4, 6)),) * 2 + (3,), np.uint8))
        return np.asarray(cloud.resize((side, side), Image.Resampling.BICUBIC)), None
    angle, across = rng.uniform(0, math.pi), np.linspace(-1, 1, side)
    ramp = math.cos(angle) * across[None] + math.sin(angle) * across[:, None]
    ramp = (ramp / 3 + 0.5).clip(0, 1) if kind == "blend" else (np.sin(ramp * rng.uniform(3, 15)) > 0).astype(float)
    return (colours[0] + (colours[1] - colours[0]) * ramp[..., None]).astype(np.uint8), None


def draw(
    rng: random.Random, noise: np.random.Generator, side: int, extra: Path | None
) -> tuple[NDArray[np.uint8], list[Thing]]:
    """Draw zero to nine things that hide at most a fifth of one another."""
    canvas, name = background(rng, noise, side)
    canvas = canvas.copy()
    styles = (*STYLES, "emojione") if extra else STYLES
    style = rng.choice(styles)
    mixed = rng.random() < 0.2
    alike = rng.random() < 0.3
    wanted = rng.choice((1, 1, 2, 2, 2, 3, 4, 4, 5)) if side == 64 else rng.randint(3, 9)
    middle = rng.uniform(SMALLEST, min(LARGEST, 1.5 * side / math.sqrt(wanted)) if wanted > 1 else LARGEST)
    if side == 64 and wanted <= 4 and rng.random() < 0.6:
        middle = rng.uniform(19, 25)  # the usual scene
    things: list[Thing] = []
    noun = rng.randrange(len(NOUNS))
    colour = rng.randrange(len(COLOURS)) if rng.random() < 0.6 else -1
    for _ in range(wanted * 6):
        if len(things) == wanted or rng.random() < 0.002:
            break
        size = round(min(LARGEST, max(SMALLEST, middle * rng.uniform(0.85, 1.18))))
        x, y = rng.randint(0, side - size), rng.randint(0, side - size)
        if any(
            max(0, min(x + size, t.x + t.size) - max(x, t.x)) * max(0, min(y + size, t.y + t.size) - max(y, t.y))
            > 0.2 * min(size, t.size) ** 2
            for t in things
        ):
            continue
        if not alike:
            noun = rng.randrange(len(NOUNS))
            colour = rng.randrange(len(COLOURS)) if rng.random() < 0.6 else -1
        shown = rng.choice(styles) if mixed else style
        tinted = tuple(COLOURS)[colour] if colour >= 0 else None
        if tinted and tinted == name:
            tinted, colour = None, -1
        if shown == "emojione":
            sheet = emojione_tinted(extra, size, tinted) if tinted else emojione(extra, size)
            drawn = sheet[noun]
            if not drawn[..., 3].any():
                drawn = sprites(size, tinted)[0, noun]
        else:
            drawn = sprites(size, tinted)[STYLES.index(shown), noun]
        under = canvas[y : y + size, x : x + size]
        under[:] = drawn[..., :3] + under * ((255 - drawn[..., 3:]) / 255)
        things.append(Thing(noun, colour, x + size / 2, y + size / 2, size))
    return canvas, things


def loss(judge: Judge, images: Tensor, truth: list[list[Thing]]) -> Tensor:
    """Focal loss of the heat maps (arXiv:1904.07850, eq. 1), L1 of size and place, cross-entropy of colour."""
    maps = judge(images.contiguous(memory_format=torch.channels_last))
    height, width = maps["heat"].shape[-2:]
    target = torch.zeros_like(maps["heat"])
    rows = [(b, t) for b, things in enumerate(truth) for t in things]
    cells = torch.arange(width) + 0.5
    for b, t in rows:
        x, y, spread = t.x / STRIDE, t.y / STRIDE, max(0.6, t.size / STRIDE / 8)
        bump = torch.exp(
            -((cells - int(x) - 0.5).square()[None] + (cells - int(y) - 0.5).square()[:, None]) / (2 * spread**2)
        )
        torch.maximum(target[b, t.noun], bump, out=target[b, t.noun])
    sure = maps["heat"].sigmoid()
    centres = target >= 1
    found = F.logsigmoid(maps["heat"]) * (1 - sure).square()
    empty = F.logsigmoid(-maps["heat"]) * sure.square() * (1 - target) ** 4
    heat = -torch.where(centres, found, empty).sum() / max(1, len(rows))
    row = torch.tensor([b for b, _ in rows])
    x, y, side = (
        torch.tensor([v for _, t in rows for v in [value(t)]]) / STRIDE
        for value in (lambda t: t.x, lambda t: t.y, lambda t: float(t.size))
    )
    column, line = x.long().clamp(0, width - 1), y.long().clamp(0, height - 1)
    size = (maps["size"][row, 0, line, column] - side.log()).abs().mean()
    offset = (maps["offset"][row, :, line, column] - torch.stack([x - column, y - line], 1)).abs().mean()
    colour = torch.tensor([t.colour for _, t in rows])
    tinted = colour >= 0
    logits = judge.pool_colour(maps["colour"], row[tinted], x[tinted], y[tinted], side[tinted])
    return heat + 0.5 * size + 0.5 * offset + 0.5 * F.cross_entropy(logits, colour[tinted])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--emojione", type=Path, help="node_modules that holds @iconify-json/emojione")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    judge = Judge().to(memory_format=torch.channels_last)
    decayed = [p for p in judge.parameters() if p.ndim > 1]
    others = [p for p in judge.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}], lr=args.lr
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.08)
    batches = iter(DataLoader(Pictures(args.seed, args.emojione), batch_size=None, num_workers=1, prefetch_factor=8))
    bar = (
        TextColumn("judge"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]:.3f}"),
    )
    with Progress(*bar) as progress:
        task = progress.add_task("judge", total=args.steps, loss=0.0)
        average = 0.0
        for step in range(args.steps):
            images, truth = next(batches)
            value = loss(judge, images, truth)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            average = value.item() if not step else 0.98 * average + 0.02 * value.item()
            progress.update(task, completed=step + 1, loss=average)
            if step % 100 == 99:
                progress.console.print(f"step {step + 1}: loss {average:.3f}")
    judge.save_pretrained(args.out)
    print(
        f"wrote {args.out}, {sum(p.numel() for p in judge.parameters()):,} weights, {args.out.stat().st_size:,} bytes"
    )
    print("test it on fresh scenes with: python benchmarks/judge_accuracy.py")


if __name__ == "__main__":
    main()
