"""The ddt-tokenizer command: pictures to ids with this package alone.

Exit codes: 0 all went well; 1 pictures were left out, the rest is written; 2 nothing was done; 130 stopped by Ctrl-C.
"""

import argparse
import os
import re
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_tokenizer.block_writing import Sample, from_npy
from ddt_tokenizer.bulk import encode_items, find_items
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.lock import locked
from ddt_tokenizer.manifest import MANIFEST, Manifest
from ddt_tokenizer.precision import Precision, slower_here
from ddt_tokenizer.shards import read_ids, write_ids
from ddt_tokenizer.shipped import folder_of, shipped
from ddt_tokenizer.terminal import printable
from ddt_tokenizer.tokenizer import DDTTokenizer

Encoded = tuple[str, Sample]
FILES = (".npz", ".npy")  # of ids
NAMED = 10  # pictures left out that are named on the screen


def main(arguments: list[str] | None = None) -> None:
    """Run `encode`, `info` or `health`; what a user can mend is one line and exit code 2."""
    options = _parser().parse_args(arguments)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="torch")  # advice to authors
    try:
        if options.verb == "encode":
            _check_out(options.out)
        if (options.tokenizer / "tokenizer" / "config.json").is_file():  # a run that trained it
            options.tokenizer /= "tokenizer"
        options.tokenizer = folder_of(options.tokenizer, "tokenizer")
        how = {name: getattr(options, name) for name in ("vae", "precision") if hasattr(options, name)}
        tokenizer = DDTTokenizer.from_pretrained(options.tokenizer, **how)
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
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddt-tokenizer", description="Write pictures as discrete diffusion timestep tokens."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    folder = f"a run, a folder with config.json and model.safetensors, or by name: {', '.join(shipped())}"
    sources = "pictures, folders of pictures, or one shard folder"
    encode = verbs.add_parser("encode", help="write the ids of pictures to an .npz file or to shards")
    encode.add_argument("sources", nargs="+", type=Path, help=sources)
    encode.add_argument("--tokenizer", default=Path("ddt-small-64"), type=Path, help=f"{folder} (default %(default)s)")
    encode.add_argument(
        "--out",
        required=True,
        type=Path,
        help="file to write, .npz with arrays 'ids' [N, K] and 'names' [N], or .npy with the ids alone; a name without "
        "an ending is a folder of shards",
    )
    info = verbs.add_parser("info", help="show what a tokenizer folder holds")
    info.add_argument("tokenizer", type=Path, help=folder)
    health = verbs.add_parser("health", help="measure how a codebook is used")
    health.add_argument("tokenizer", type=Path, help=folder)
    health.add_argument(
        "sources", nargs="+", type=Path, help=f"an .npz or .npy file or shards of its ids; or {sources}"
    )
    health.add_argument("--json", type=Path, help="file for all figures, those of each position included")
    for verb in (encode, health):
        verb.add_argument("--vae", help="folder or Hub id of the VAE, if not where the tokenizer says")
        verb.add_argument("--batch-size", type=int, default=64, help="pictures encoded at once (default %(default)s)")
        verb.add_argument(
            "--precision",
            choices=get_args(Precision),
            default="32",
            help="bf16 multiplies in it: less time where the device can, up to 1 %% of the ids are others, and shards "
            "say so; 32 is exact (default)",
        )
    return parser


def _check_out(out: Path) -> None:
    """Refuse before any work what --out cannot be."""
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"folder '{out.parent}' of --out does not exist; make it first")
    if out.is_dir() and out.suffix.lower() not in FILES:
        return
    if out.is_dir():
        raise IsADirectoryError(f"--out '{out}' is a folder; name a file, or a folder without an ending")
    if re.search("[a-z]", out.suffix.lower()) and out.suffix.lower() not in FILES:
        raise ValueError(f"--out '{out}' must end in .npz or .npy, or in nothing, for a folder of shards")


def _encode(options: argparse.Namespace, tokenizer: DDTTokenizer) -> None:
    """Write ids, atomically, and end with exit code 1 if pictures were left out."""
    out = options.out
    if out.suffix.lower() in FILES:
        with locked(out):
            encoded, skipped = _encoded(options, tokenizer)
            names, rows = zip(*((name, sample["ids"]) for name, sample in encoded), strict=True)
            _save(out, np.stack(rows), np.array(names))
        count = len(rows)
    else:
        encoded, skipped = _encoded(options, tokenizer)
        source = f"ids of {', '.join(source.name for source in options.sources[:3])}"
        left_out = ({"name": name, "why": why} for name, why in skipped)
        count = write_ids(out, (sample for _, sample in encoded), tokenizer.identity, source, left_out).samples
    print(f"{count:,} of {count + len(skipped):,} pictures are in {out}", file=sys.stderr)
    _name(skipped)
    if skipped:
        raise SystemExit(1)


def _save(out: Path, ids: NDArray[np.int64], names: NDArray[np.str_]) -> None:
    real = Path(os.path.realpath(out))
    part = real.with_name(f".{real.name}.part")
    try:
        with open(part, "wb") as file:
            np.save(file, ids) if out.suffix.lower() == ".npy" else np.savez(file, ids=ids, names=names)
        os.replace(part, real)
    finally:
        part.unlink(missing_ok=True)


def _encoded(options: argparse.Namespace, tokenizer: DDTTokenizer) -> tuple[Iterator[Encoded], list[tuple[str, str]]]:
    """Encode the pictures of a command: results as they come, and what was left out so far with the reasons."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size ({options.batch_size}) must be at least 1")
    total, items = find_items(options.sources)
    skipped: list[tuple[str, str]] = []
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if line := slower_here(tokenizer.precision, device):
        print(line, file=sys.stderr)
    tokenizer.to(device)
    results = encode_items(items, tokenizer, options.batch_size, lambda *why: skipped.append(why))
    return _watched(results, total, skipped), skipped


def _name(skipped: list[tuple[str, str]]) -> None:
    for name, why in skipped[:NAMED]:
        print(printable(f"left out {name}: {why}"), file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"and {len(skipped) - NAMED} more", file=sys.stderr)


def _watched(encoded: Iterator[Encoded], total: int, skipped: list[tuple[str, str]]) -> Iterator[Encoded]:
    """Pass results on and show how far they are: live in a terminal, every ten seconds in a log."""
    live = sys.stderr.isatty()
    started = shown = time.monotonic()
    done = 0
    for done, result in enumerate(encoded, start=1):
        yield result
        now, seen = time.monotonic(), done + len(skipped)
        if now - shown >= (0.2 if live else 10) or (live and seen == total):
            left = (now - started) / seen * (total - seen)
            line = f"{seen:,}/{total:,} pictures, {seen / (now - started):,.1f} a second, {left:,.0f} s left"
            print(f"\r{line} " if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
            shown = now
    if live:
        print(file=sys.stderr)
    if not done:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"none of {total} pictures can be read{first}")


def _ids_of(options: argparse.Namespace, tokenizer: DDTTokenizer) -> Tensor:
    """Ids int64 [N, K] from a file, from id shards of this tokenizer, or of pictures."""
    source = options.sources[0]
    if len(options.sources) > 1 and (any(each.suffix.lower() in FILES for each in options.sources)):
        raise ValueError(f"a file of ids must be the only source, not one of {len(options.sources)}")
    if source.suffix.lower() in FILES:
        ids = _load(source)
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
    if (
        ids.ndim != 2
        or ids.dtype.kind not in "iu"
        or (ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.codebook_size)
    ):
        raise ValueError(
            f"ids of '{source}', shape {ids.shape}, are not [N, K] integers from 0 to {tokenizer.codebook_size - 1}"
        )
    return torch.from_numpy(ids.astype(np.int64))


def _load(file: Path) -> NDArray:
    """Read the ids of an .npz or .npy file, which may come from anybody."""
    try:
        if file.suffix.lower() == ".npy":
            return from_npy(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            return from_npy(archive.read("ids.npy"))
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError) as error:
        raise ValueError(f"{file} is no file of ids ({error}); write one with: ddt-tokenizer encode") from error
