"""ddt tokenize: picture shards to id shards, shard by shard, by any number of commands at once.

An id shard is a function of its picture shard and the tokenizer alone, to the byte. So a run that was stopped goes on
with the next shard, whoever makes which shard, and `verify_shards` makes shards again to compare.
"""

import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddt_apps.run import ranks
from ddt_apps.run.devices import pick_device_for
from ddt_apps.run.progress import StageProgress
from ddt_apps.shards.jobs import build_together, device_of_worker, made_of, readable, shard_tasks
from ddt_data import Made, Manifest, Plan, Shard, open_shard, write_block
from ddt_data.shards.claim import part_of
from ddt_data.shards.notes import begun, name_of
from ddt_data.shards.remote import RemoteFolder, open_folder
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.precision import Precision, multiplies_bf16, recorded
from ddt_tokenizer.shards import batches

PICTURES = (("image", "ids", "latents"), ("target", "target_ids", "target_latents"))
LONG, TRIED = 60.0, 32  # seconds from which what bf16 saves is worth a line, and pictures of which it is measured


def tokenize_shards(
    shards: str | Path,
    tokenizer: Path,
    out: Path,
    batch_size: int = 32,
    latents: bool = False,
    workers: int = 1,
    precision: Precision = "32",
) -> Manifest:
    """Write the ids of all pictures, with their keys, captions, questions and edits, into a new shard folder.

    Run again after a stop, it goes on with the next shard; run several times at once, on one machine or on many that
    see the folder, the commands share the shards, and each returns when the folder is in place. Started by torchrun,
    each rank has a device of its own.

    Args:
        shards: Folder of picture shards, of a disk or behind a URL; or of shards that hold latents of the tokenizer's
            latent space, which are used in place of the pictures, so that the VAE has to see a picture only once.
        tokenizer: Folder of a `ddt train-tokenizer` run.
        out: Folder to make; it appears whole.
        batch_size: Pictures encoded at once.
        latents: Keep the latents too, in float16.
        workers: Processes of this command.
        precision: In which the encoder computes. Long work in "32" says at its start what "bf16" would save.

    Returns:
        The manifest, which names the samples that could not be used.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        FileExistsError: If `out` holds something else.
        ValueError: If the pictures are of another size, a shard is damaged, or `out` is half made in the other
            precision.
    """
    device = pick_device_for(precision)
    folder, source = open_folder(shards)
    plan, total = plan_tokenizing(folder, tokenizer, batch_size, latents, workers, precision)
    _refuse_other_precision(out, source, plan, [batch_size, latents], precision)
    rank, world_size = ranks.rank(), ranks.num_ranks()
    if precision == "32" and rank == 0 and multiplies_bf16(device) and not begun(out, plan.tasks):
        codec = _load(str(tokenizer), workers, precision)
        if line := what_bf16_saves(codec, folder, total // (world_size * workers)):
            print(line, file=sys.stderr)
    return build_together("tokenize", out, plan, total, workers)


def _refuse_other_precision(out: Path, source: Manifest, plan: Plan, how: list, precision: Precision) -> None:
    """Refuse to make anew what waits beside `out`, made of the same shards in the other precision."""
    other: Precision = "bf16" if precision == "32" else "32"
    exact = {name: value for name, value in plan.manifest.tokenizer.items() if name != "precision"}
    if begun(out, partial(shard_tasks, source, [exact | recorded(other), *how])):
        raise ValueError(
            f"'{out}' is half made in precision {other}; go on with --precision {other}, or delete {part_of(out)} to "
            f"start over"
        )


@torch.inference_mode()
def what_bf16_saves(codec: Codec, shards: str | Path | RemoteFolder, total: int) -> str:
    """Measure on a few pictures what encoding `total` of them in bf16 would save: a line for the user.

    Returns:
        Nothing if exact encoding takes less than a minute, or bf16 no less.
    """
    folder, source = open_folder(shards)
    samples = islice(readable(folder, source, source.shards[0], []), TRIED)
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


def verify_shards(shards: str | Path, tokenizer: Path, out: Path, batch_size: int = 32) -> int:
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
    if found.tokenizer != plan.manifest.tokenizer or found.samples + len(found.skipped) != total:
        raise ValueError(
            f"'{out}' does not hold the {total} samples of '{shards}' as ids of '{tokenizer}'; make it again"
        )
    held = {shard.name: shard for shard in found.shards}
    with tempfile.TemporaryDirectory() as folder, StageProgress("verify", total, unit="pictures") as progress:
        done = 0
        for number, (_, shard) in enumerate(plan.tasks()):
            made = plan.make(path := Path(folder, f"{name_of(number)}.tar"), shard).shard
            if made is None and path.name not in held:
                continue  # all of it was rejected
            if made is None or path.name not in held:
                raise ValueError(f"{out / path.name} is not made of the samples of '{shards}'; make it again")
            if made.sha256 != held[path.name].sha256:
                raise ValueError(_difference(out / path.name, path))
            progress.update(done := done + made.samples)
    return done


def plan_tokenizing(
    shards: str | Path | RemoteFolder,
    tokenizer: Path,
    batch_size: int,
    latents: bool,
    workers: int = 1,
    precision: Precision = "32",
) -> tuple[Plan, int]:
    """Return how id shards are made, and of how many samples.

    Raises:
        FileNotFoundError: If the shards or the tokenizer are missing.
        ValueError: If they do not fit one another.
    """
    _load.cache_clear()  # of another tokenizer, perhaps, that lay there when this process looked last
    codec, (folder, source) = _load(str(tokenizer), workers, precision), open_folder(shards)
    space = codec.tokenizer.config.latents
    cached = source.latents is not None
    if cached and replace(LatentConfig(**source.latents), vae=None) != replace(space, vae=None):
        raise ValueError(f"latents in '{shards}' are of {source.latents}, the tokenizer in '{tokenizer}' takes {space}")
    if not cached:
        _check_pictures(source, shards, codec, tokenizer)
    if latents and space.pixels:
        raise ValueError(f"the latents of '{tokenizer}' are the pictures themselves; leave --latents out")
    kept = asdict(space) if latents or cached else None
    manifest = made_of(source, "ids", tokenizer=codec.identity, latents=kept)
    make = partial(_make, folder, source, str(tokenizer), batch_size, latents, workers, precision)
    return Plan(partial(shard_tasks, source, [codec.identity, batch_size, latents]), make, manifest), source.samples


def _check_pictures(source: Manifest, shards: str | Path | RemoteFolder, codec: Codec, tokenizer: Path) -> None:
    if source.image_size is None:
        raise ValueError(f"'{shards}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if source.image_size != codec.image_size:
        raise ValueError(
            f"pictures in '{shards}' have {source.image_size} px, the tokenizer in '{tokenizer}' takes "
            f"{codec.image_size}; pack them again with --image-size {codec.image_size}"
        )


def _make(
    folder: Path | RemoteFolder,
    source: Manifest,
    tokenizer: str,
    batch_size: int,
    latents: bool,
    workers: int,
    precision: Precision,
    path: Path,
    shard: Shard,
) -> Made:
    codec = _load(tokenizer, workers, precision)
    samples, rejected = [], []
    for batch in batches(readable(folder, source, shard, rejected), batch_size):
        for picture, ids, cache in PICTURES:
            if having := [sample for sample in batch if picture in sample or cache in sample]:
                _encode(codec, having, picture, ids, cache, latents)
        samples += batch
    return Made(write_block(path, samples, codec.identity), tuple(rejected))


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
