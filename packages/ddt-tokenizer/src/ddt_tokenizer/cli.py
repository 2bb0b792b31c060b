"""The ddt-tokenizer command: pictures to ids with this package alone.

Exit codes: 0 all went well; 1 pictures were left out, the rest is written; 2 nothing was done.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddt_tokenizer.block_writing import Sample
from ddt_tokenizer.bulk import encode_items, find_items
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.manifest import MANIFEST, Manifest
from ddt_tokenizer.shards import read_ids, write_ids
from ddt_tokenizer.tokenizer import DDTTokenizer

Encoded = tuple[str, Sample]
NAMED = 10  # pictures left out that are named on the screen


def main(arguments: list[str] | None = None) -> None:
    """Run `encode`, `info` or `health`; what a user can mend is one line and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        tokenizer = DDTTokenizer.from_pretrained(options.tokenizer, vae=getattr(options, "vae", None))
        if options.verb == "info":
            weights = sum(p.numel() for p in tokenizer.parameters())
            print(f"{(options.tokenizer / 'config.json').read_text()}\n{weights:,} weights")
        elif options.verb == "encode":
            _encode(options, tokenizer)
        else:
            health = codebook_health(_ids_of(options, tokenizer), tokenizer.quantizer.codebook.cpu())
            print(health)
            if options.json:
                health.save(options.json)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddt-tokenizer", description="Write pictures as discrete diffusion timestep tokens."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    folder = "folder with config.json and model.safetensors"
    sources = "pictures, folders of pictures, or one shard folder"
    encode = verbs.add_parser("encode", help="write the ids of pictures to an .npz file or to shards")
    encode.add_argument("sources", nargs="+", type=Path, help=sources)
    encode.add_argument("--tokenizer", required=True, type=Path, help=folder)
    encode.add_argument(
        "--out",
        required=True,
        type=Path,
        help="file to write, .npz with arrays 'ids' [N, K] and 'names' [N]; any other name is a folder of shards",
    )
    info = verbs.add_parser("info", help="show what a tokenizer folder holds")
    info.add_argument("tokenizer", type=Path, help=folder)
    health = verbs.add_parser("health", help="measure how a codebook is used")
    health.add_argument("tokenizer", type=Path, help=folder)
    health.add_argument("sources", nargs="+", type=Path, help=f"an .npz file or shards of its ids; or {sources}")
    health.add_argument("--json", type=Path, help="file for all figures, those of each position included")
    for verb in (encode, health):
        verb.add_argument("--vae", help="folder or Hub id of the VAE, if not where the tokenizer says")
        verb.add_argument("--batch-size", type=int, default=64, help="pictures encoded at once (default %(default)s)")
    return parser


def _encode(options: argparse.Namespace, tokenizer: DDTTokenizer) -> None:
    """Write ids, atomically, and end with exit code 1 if pictures were left out."""
    out = options.out
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"folder '{out.parent}' of --out does not exist; make it first")
    encoded, skipped = _encoded(options, tokenizer)
    if out.suffix == ".npz":
        names, rows = zip(*((name, sample["ids"]) for name, sample in encoded), strict=True)
        count = len(rows)
        part = out.with_name(f".{out.name}.part.npz")
        np.savez(part, ids=np.stack(rows), names=np.array(names))
        part.replace(out)
    else:
        source = f"ids of {', '.join(source.name for source in options.sources[:3])}"
        left_out = ({"name": name, "why": why} for name, why in skipped)
        count = write_ids(out, (sample for _, sample in encoded), tokenizer.identity, source, left_out).samples
    print(f"{count:,} of {count + len(skipped):,} pictures are in {out}", file=sys.stderr)
    _name(skipped)
    if skipped:
        raise SystemExit(1)


def _encoded(options: argparse.Namespace, tokenizer: DDTTokenizer) -> tuple[Iterator[Encoded], list[tuple[str, str]]]:
    """Encode the pictures of a command: results as they come, and what was left out so far with the reasons."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size ({options.batch_size}) must be at least 1")
    total, items = find_items(options.sources)
    skipped: list[tuple[str, str]] = []
    tokenizer.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    results = encode_items(items, tokenizer, options.batch_size, lambda *why: skipped.append(why))
    return _watched(results, total, skipped), skipped


def _name(skipped: list[tuple[str, str]]) -> None:
    for name, why in skipped[:NAMED]:
        print(f"left out {name}: {why}", file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"and {len(skipped) - NAMED} more", file=sys.stderr)


def _watched(encoded: Iterator[Encoded], total: int, skipped: list[tuple[str, str]]) -> Iterator[Encoded]:
    """Pass results on and show how far they are: live in a terminal, every ten seconds in a log."""
    live = sys.stderr.isatty()
    started = shown = time.monotonic()
    for done, result in enumerate(encoded, start=1):
        yield result
        now, done = time.monotonic(), done + len(skipped)
        if now - shown >= (0.2 if live else 10) or (live and done == total):
            left = (now - started) / done * (total - done)
            line = f"{done:,}/{total:,} pictures, {done / (now - started):,.1f} a second, {left:,.0f} s left"
            print(f"\r{line} " if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
            shown = now
    if live:
        print(file=sys.stderr)
    if skipped and len(skipped) == total:
        raise ValueError(f"none of {total} pictures can be read; the first: {skipped[0][1]}")


def _ids_of(options: argparse.Namespace, tokenizer: DDTTokenizer) -> Tensor:
    """Ids int64 [N, K] from a file, from id shards of this tokenizer, or of pictures."""
    source = options.sources[0]
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            ids = file["ids"]
    elif (source / MANIFEST).is_file() and (written := Manifest.read(source).tokenizer):
        if written["fingerprint"] != tokenizer.fingerprint():
            raise ValueError(
                f"{source} holds ids of tokenizer {written['fingerprint']}, not of {tokenizer.fingerprint()}; name the "
                f"tokenizer that wrote them"
            )
        ids = read_ids(source)
    else:
        encoded, skipped = _encoded(options, tokenizer)
        ids = np.stack([sample["ids"] for _, sample in encoded])
        _name(skipped)
    if ids.ndim != 2 or (ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.codebook_size):
        raise ValueError(
            f"ids of '{source}', shape {ids.shape}, are not [N, K] integers from 0 to {tokenizer.codebook_size - 1}"
        )
    return torch.from_numpy(ids).long()
