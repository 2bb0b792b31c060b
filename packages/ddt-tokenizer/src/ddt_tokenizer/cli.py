"""The ddt-tokenizer command: pictures to ids with this package alone."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ddt_tokenizer.tokenizer import DDTTokenizer

BATCH = 64


def main(arguments: list[str] | None = None) -> None:
    """Run `encode` or `info`; what a user can mend is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="ddt-tokenizer", description="Write pictures as discrete diffusion timestep tokens."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    encode = verbs.add_parser("encode", help="write the ids of pictures to an .npz file")
    encode.add_argument("images", nargs="+", type=Path, help="pictures (jpg, png, webp)")
    encode.add_argument("--tokenizer", required=True, type=Path, help="folder with config.json and model.safetensors")
    encode.add_argument("--out", required=True, type=Path, help="file to write: arrays 'ids' [N, K] and 'names' [N]")
    info = verbs.add_parser("info", help="show what a tokenizer folder holds")
    info.add_argument("tokenizer", type=Path, help="folder with config.json and model.safetensors")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "encode":
            encode_files(options.images, DDTTokenizer.from_pretrained(options.tokenizer), options.out)
        else:
            tokenizer = DDTTokenizer.from_pretrained(options.tokenizer)
            weights = sum(p.numel() for p in tokenizer.parameters())
            print(f"{(options.tokenizer / 'config.json').read_text()}\n{weights:,} weights")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def encode_files(images: list[Path], tokenizer: DDTTokenizer, out: Path) -> None:
    """Write the ids of picture files to `out`, atomically.

    Raises:
        FileNotFoundError, ValueError: A picture is missing or cannot be read; nothing is written.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"folder '{out.parent}' of --out does not exist; make it first")
    rows, started = [], time.monotonic()
    for first in range(0, len(images), BATCH):
        rows.append(tokenizer.encode(images[first : first + BATCH]))
        done = first + len(images[first : first + BATCH])
        left = (time.monotonic() - started) / done * (len(images) - done)
        print(f"\r{done}/{len(images)} pictures, {left:.0f} s left", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    partial = out.with_name(f".{out.name}.part.npz")
    np.savez(partial, ids=torch.cat(rows).numpy(), names=np.array([str(image) for image in images]))
    partial.rename(out)
