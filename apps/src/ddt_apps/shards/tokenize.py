"""ddt tokenize: picture shards to id shards, shard by shard, in any number of processes.

An id shard is a function of its picture shard and the tokenizer alone, to the byte. So a run that was stopped goes on
with the next shard, ranks share the work without talking, and `verify_shards` makes shards again to compare.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.run import ranks
from ddt_apps.run.devices import pick_device, pick_device_for
from ddt_apps.run.progress import StageProgress
from ddt_data import Made, Manifest, Plan, Shard, build, open_shard, write_block
from ddt_data.shards.building import begun
from ddt_data.shards.claim import part_of
from ddt_data.shards.folder import check_shard
from ddt_data.shards.manifest import BLOCKS
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.precision import Precision, multiplies_bf16, recorded

PICTURES = (("image", "ids", "latents"), ("target", "target_ids", "target_latents"))
LONG, TRIED = 60.0, 32  # seconds from which what bf16 saves is worth a line, and pictures of which it is measured


def tokenize_shards(
    shards: Path,
    tokenizer: Path,
    out: Path,
    batch_size: int = 256,
    latents: bool = False,
    workers: int = 1,
    precision: Precision = "32",
) -> Manifest | None:
    """Write the ids of all pictures, with their keys, captions, questions and edits, into a new shard folder.

    Run again after a stop, it goes on with the next shard. Started by torchrun, each rank does its share on a device of
    its own; the last one to end puts the folder in place.

    Args:
        shards: Folder of picture shards; or of shards that hold latents of the tokenizer's latent space, which are
            used in place of the pictures, so that the VAE has to see a picture only once.
        tokenizer: Folder of a `ddt train-tokenizer` run.
        out: Folder to make; it appears whole.
        batch_size: Pictures encoded at once.
        latents: Keep the latents too, in float16.
        workers: Processes of this rank.
        precision: In which the encoder computes. Long work in "32" says at its start what "bf16" would save.

    Returns:
        The manifest, or None if other ranks are not done.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        FileExistsError: If `out` holds something else.
        ValueError: If the pictures are of another size, a shard is damaged, or `out` is half made in the other
            precision.
    """
    device = pick_device_for(precision)
    plan, total = plan_tokenizing(shards, tokenizer, batch_size, latents, workers, precision)
    _refuse_other_precision(out, Path(shards), plan, [batch_size, latents], precision)
    rank, world_size = ranks.rank(), ranks.num_ranks()
    if precision == "32" and rank == 0 and multiplies_bf16(device) and not begun(out, plan.tasks):
        codec = _load(str(tokenizer), workers, precision)
        if line := what_bf16_saves(codec, Path(shards), total // (world_size * workers)):
            print(line, file=sys.stderr)
    return build_share("tokenize", out, plan, total, workers)


def _refuse_other_precision(out: Path, shards: Path, plan: Plan, how: list, precision: Precision) -> None:
    """Refuse to make anew what waits beside `out`, made of the same shards in the other precision."""
    other: Precision = "bf16" if precision == "32" else "32"
    exact = {name: value for name, value in plan.manifest.tokenizer.items() if name != "precision"}
    if begun(out, partial(shard_tasks, shards, [exact | recorded(other), *how])):
        raise ValueError(
            f"'{out}' is half made in precision {other}; go on with --precision {other}, or delete {part_of(out)} to "
            f"start over"
        )


@torch.inference_mode()
def what_bf16_saves(codec: Codec, shards: Path, total: int) -> str:
    """Measure on a few pictures what encoding `total` of them in bf16 would save: a line for the user.

    Returns:
        Nothing if exact encoding takes less than a minute, or bf16 no less.
    """
    manifest = Manifest.read(shards)
    source = open_shard(shards / manifest.shards[0].name, manifest)
    samples = [source[i] for i in range(min(TRIED, len(source)))]
    samples = [sample for sample in samples if {"image", "latents"} & set(sample)]
    if not samples:
        return ""
    x = _latents(codec, samples, "image", "latents")

    def encoded(precision: Precision) -> tuple[Tensor, float]:
        codec.tokenizer.precision = precision
        codec.tokenizer.encode_latents(x).cpu()  # the first time, memory and kernels are sought
        started = time.perf_counter()
        return codec.tokenizer.encode_latents(x).cpu(), time.perf_counter() - started

    try:
        exact, seconds = encoded("32")
        if seconds / len(x) * total < LONG:
            return ""
        ids, fewer = encoded("bf16")
    finally:
        codec.tokenizer.precision = "32"
    if fewer >= seconds:
        return ""
    others = 100 * float((ids != exact).float().mean())
    return f"--precision bf16 would encode in {fewer / seconds:.2f} of the time, with {others:.1f} % other ids"


def build_share(stage: str, out: Path, plan: Plan, total: int, workers: int) -> Manifest | None:
    """Do this rank's share of a plan of `total` pictures; None if other ranks of torchrun are not done."""
    rank, world_size = ranks.rank(), ranks.num_ranks()
    with StageProgress(stage, total, unit="pictures") as progress:
        return build(out, plan, workers, rank, world_size, progress=lambda done, of: progress.update(done))


def verify_shards(shards: Path, tokenizer: Path, out: Path, batch_size: int = 256) -> int:
    """Make every id shard of a finished folder again, in the precision that it was made in, and compare.

    Returns:
        Samples that were compared.

    Raises:
        FileNotFoundError: If a folder is missing or unfinished.
        ValueError: If a shard differs: it is damaged, of another tokenizer or other pictures, or was made on another
            kind of device; says how many samples do.
    """
    found = Manifest.read(out)
    precision = (found.tokenizer or {}).get("precision", "32")
    plan, total = plan_tokenizing(shards, tokenizer, batch_size, found.latents is not None, precision=precision)
    if found.tokenizer != plan.manifest.tokenizer or found.samples != total:
        raise ValueError(
            f"'{out}' does not hold the {total} samples of '{shards}' as ids of '{tokenizer}'; make it again"
        )
    with tempfile.TemporaryDirectory() as folder, StageProgress("verify", total, unit="pictures") as progress:
        done = 0
        for there, (_, shard) in zip(found.shards, plan.tasks(), strict=True):
            made = plan.make(Path(folder, there.name), shard).shard
            if made.sha256 != there.sha256:
                raise ValueError(_difference(Path(out, there.name), Path(folder, there.name)))
            progress.update(done := done + made.samples)
    return done


def plan_tokenizing(
    shards: Path, tokenizer: Path, batch_size: int, latents: bool, workers: int = 1, precision: Precision = "32"
) -> tuple[Plan, int]:
    """Return how id shards are made, and of how many samples.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        ValueError: If they do not fit one another.
    """
    _load.cache_clear()  # of another tokenizer, perhaps, that lay there when this process looked last
    codec, source = _load(str(tokenizer), workers, precision), Manifest.read(shards)
    space = codec.tokenizer.config.latents
    cached = source.latents is not None
    if cached and replace(LatentConfig(**source.latents), vae=None) != replace(space, vae=None):
        raise ValueError(f"latents in '{shards}' are of {source.latents}, the tokenizer in '{tokenizer}' takes {space}")
    if not cached:
        _check_pictures(source, shards, codec, tokenizer)
    if latents and space.pixels:
        raise ValueError(f"the latents of '{tokenizer}' are the pictures themselves; leave --latents out")
    manifest = Manifest(
        0,
        (),
        source=f"ids of {source.source}",
        licence=source.licence,
        tokenizer=codec.identity,
        latents=asdict(space) if latents or cached else None,
        parts=source.parts,
        format=BLOCKS,
    )
    identity = [codec.identity, batch_size, latents]
    make = partial(_make, Path(shards), source, str(tokenizer), batch_size, latents, workers, precision)
    return Plan(partial(shard_tasks, Path(shards), identity), make, manifest), source.samples


def _check_pictures(source: Manifest, shards: Path, codec: Codec, tokenizer: Path) -> None:
    if source.image_size is None:
        raise ValueError(f"'{shards}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if source.image_size != codec.image_size:
        raise ValueError(
            f"pictures in '{shards}' have {source.image_size} px, the tokenizer in '{tokenizer}' takes "
            f"{codec.image_size}; pack them again with --image-size {codec.image_size}"
        )


def shard_tasks(shards: Path, identity: list) -> Iterator[tuple[Any, Shard]]:
    """Name the work of a plan, shard by shard: what decides its result, and the shard."""
    for shard in Manifest.read(shards).shards:
        yield [*identity, shard.sha256], shard


def _make(
    shards: Path,
    manifest: Manifest,
    tokenizer: str,
    batch_size: int,
    latents: bool,
    workers: int,
    precision: Precision,
    path: Path,
    shard: Shard,
) -> Made:
    check_shard(shards, shard)
    codec, source = _load(tokenizer, workers, precision), open_shard(shards / shard.name, manifest)
    samples = []
    for first in range(0, len(source), batch_size):
        batch = [source[i] for i in range(first, min(first + batch_size, len(source)))]
        for picture, ids, cache in PICTURES:
            if having := [sample for sample in batch if picture in sample or cache in sample]:
                _encode(codec, having, picture, ids, cache, latents)
        samples += batch
    return Made(write_block(path, samples, codec.identity))


@torch.inference_mode()
def _encode(codec: Codec, samples: list[dict], picture: str, ids: str, cache: str, latents: bool) -> None:
    """Put ids, and latents if wanted, in the place of pictures."""
    x = _latents(codec, samples, picture, cache)
    if latents and cache not in samples[0]:
        x = x.half()  # as they are kept, so that they give the same ids again
        for sample, row in zip(samples, x.cpu().numpy(), strict=True):
            sample[cache] = row
    for sample, row in zip(samples, codec.tokenizer.encode_latents(x.float()).cpu().numpy(), strict=True):
        sample.pop(picture, None)
        sample[ids] = row


def _latents(codec: Codec, samples: list[dict], picture: str, cache: str) -> Tensor:
    """Return the latents [B, C, h, w] of pictures, or those that samples hold, on the device of the tokenizer."""
    device = next(codec.tokenizer.parameters()).device
    if cache in samples[0]:
        return torch.stack([torch.from_numpy(sample[cache]) for sample in samples]).to(device).float()
    return codec.tokenizer.latent_space.encode(to_tensor([sample[picture] for sample in samples]).to(device))


@lru_cache(maxsize=1)
def _load(tokenizer: str, workers: int, precision: Precision) -> Codec:
    """Load a codec, once a process, onto the device of this rank."""
    return Codec.from_pretrained(tokenizer, device_of_worker(workers), precision=precision)


def device_of_worker(workers: int) -> torch.device:
    """Take this rank's device, and this process's share of the threads."""
    device = pick_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(ranks.rank_here())
    if workers > 1:
        torch.set_num_threads(max(1, os.cpu_count() // workers))
    return device


def _difference(there: Path, made: Path) -> str:
    old, new = open_shard(there), open_shard(made)
    if len(old) != len(new):
        return f"{there} holds {len(old)} samples instead of {len(new)}; make it again"
    differ = [new[i]["key"] for i in range(len(new)) if not _same(old[i], new[i])]
    if not differ:
        return f"{there} holds the same samples in other bytes, so another version wrote it; make it again to be sure"
    return (
        f"{there}: {len(differ)} of {len(new)} samples differ, first {differ[0]}; it is damaged, or was made of other "
        f"pictures or on another kind of device"
    )


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[field], b[field]) for field in a)
