"""ddt data latents: picture shards to shards of a VAE's latents, so that training of a tokenizer runs no VAE.

Like `ddt tokenize` shard by shard, in any number of processes, and on with the next shard after a stop.
"""

import os
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ddt_apps.run.devices import pick_device
from ddt_apps.run.progress import StageProgress
from ddt_apps.shards.tokenize import device_of_worker, shard_tasks
from ddt_data import Made, Manifest, Mixture, Plan, Shard, build, open_shard, open_shards, write_block
from ddt_data.shards.folder import check_shard
from ddt_data.shards.manifest import BLOCKS
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.latents import ImageLatents


def cache_latents(shards: Path, vae: str, out: Path, batch_size: int = 64, workers: int = 1) -> Manifest | None:
    """Write the latents of all pictures, float16, with their keys, captions and edits, into a new shard folder.

    Args:
        shards: Folder of picture shards.
        vae: Folder or Hub id of a diffusers AutoencoderKL or AutoencoderTiny.
        out: Folder to make; it appears whole.
        batch_size: Pictures encoded at once.
        workers: Processes of this rank.

    Returns:
        The manifest, or None if other ranks of torchrun are not done.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: Something is missing, in the way, or holds no pictures.
    """
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    source, space = Manifest.read(shards), LatentConfig.from_vae(vae)
    if source.image_size is None:
        raise ValueError(f"'{shards}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    manifest = Manifest(
        0,
        (),
        source=f"latents of {source.source}",
        licence=source.licence,
        latents=asdict(space),
        parts=source.parts,
        format=BLOCKS,
    )
    make = partial(_make, Path(shards), space, batch_size, workers)
    plan = Plan(partial(shard_tasks, Path(shards), [asdict(space), batch_size]), make, manifest)
    with StageProgress("latents", source.samples, unit="pictures") as progress:
        return build(out, plan, workers, rank, world_size, progress=lambda done, of: progress.update(done))


def open_latents(folder: str, space: LatentConfig, image_size: int, held_out: int) -> tuple[Mixture, Tensor]:
    """Read latent shards: what to train on, and the last `held_out` latents [n, C, h, w].

    Raises:
        FileNotFoundError, ValueError: The shards are missing, of another latent space, or of pictures of another size.
    """
    dataset = open_shards(folder)
    found = LatentConfig(**dataset.manifest.latents)
    if replace(found, vae=None) != replace(space, vae=None):
        raise ValueError(f"latents in '{folder}' are of {found}, the tokenizer takes {space}; cache them again")
    for source in dataset.sources:
        size = source[0]["latents"].shape[-1] * space.downscale
        if size != image_size:
            raise ValueError(
                f"pictures behind '{source.folder}' have {size} px, the tokenizer takes {image_size}; cache others"
            )
    kept = dataset.without_last(held_out)
    return kept, latents_of([dataset[i] for i in range(len(kept), len(dataset))]) if held_out else torch.empty(0)


def latents_of(samples: list[dict]) -> Tensor:
    """Collate the latents of samples into [B, C, h, w]; targets of edits as `train_tokenizer.pictures_of` does."""
    rows = [s["target_latents"] if "target_latents" in s and i % 2 else s["latents"] for i, s in enumerate(samples)]
    return torch.stack([torch.from_numpy(row).float() for row in rows])


@torch.inference_mode()
def _make(shards: Path, space: LatentConfig, batch_size: int, workers: int, path: Path, shard: Shard) -> Made:
    check_shard(shards, shard)
    encode, source, device = _load(space, workers), open_shard(shards / shard.name), pick_device()
    samples = []
    for first in range(0, len(source), batch_size):
        batch = [source[i] for i in range(first, min(first + batch_size, len(source)))]
        for picture, name in (("image", "latents"), ("target", "target_latents")):
            if having := [sample for sample in batch if picture in sample]:
                latents = encode(to_tensor([sample.pop(picture) for sample in having]).to(device))
                for sample, row in zip(having, latents.half().cpu().numpy(), strict=True):
                    sample[name] = row
        samples += batch
    return Made(write_block(path, samples, None))


@lru_cache(maxsize=1)
def _load(space: LatentConfig, workers: int) -> ImageLatents:
    """Load a VAE, once a process."""
    device_of_worker(workers)
    return ImageLatents(space)
