"""ddt data latents: picture shards to shards of a VAE's latents, so that training of a tokenizer runs no VAE.

Like `ddt tokenize` shard by shard, by any number of commands at once, and on with the next shard after a stop.
"""

from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch

from ddt_apps.run.devices import pick_device
from ddt_apps.shards.jobs import build_together, device_of_worker, made_of, readable, shard_tasks
from ddt_data import Made, Manifest, Plan, Shard, write_block
from ddt_data.shards.remote import RemoteFolder, open_folder
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.latents import LatentSpace
from ddt_tokenizer.shards import batches


def cache_latents(shards: str | Path, vae: str, out: Path, batch_size: int = 32, workers: int = 1) -> Manifest:
    """Write the latents of all pictures, float16, with their keys, captions and edits, into a new shard folder.

    Args:
        shards: Folder of picture shards, of a disk or behind a URL.
        vae: Folder or Hub id of a diffusers AutoencoderKL or AutoencoderTiny.
        out: Folder to make; it appears whole. Other commands that make it share the work.
        batch_size: Pictures encoded at once.
        workers: Processes of this command.

    Returns:
        The manifest, which names the samples that could not be used.

    Raises:
        FileNotFoundError: If the shards are missing.
        FileExistsError: If `out` holds something else.
        ValueError: If the shards hold no pictures, or the VAE is missing.
    """
    _load.cache_clear()  # of another VAE, perhaps, that lay there when this process looked last
    (folder, source), space = open_folder(shards), LatentConfig.from_vae(vae)
    if source.image_size is None:
        raise ValueError(f"'{shards}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    make = partial(_make, folder, source, space, batch_size, workers)
    tasks = partial(shard_tasks, source, [asdict(space), batch_size])
    plan = Plan(tasks, make, made_of(source, "latents", latents=asdict(space)))
    return build_together("latents", out, plan, source.samples, workers)


@torch.inference_mode()
def _make(
    folder: Path | RemoteFolder,
    source: Manifest,
    space: LatentConfig,
    batch_size: int,
    workers: int,
    path: Path,
    shard: Shard,
) -> Made:
    vae, device = _load(space, workers), pick_device()
    samples, rejected = [], []
    for batch in batches(readable(folder, source, shard, rejected), batch_size):
        for picture, name in (("image", "latents"), ("target", "target_latents")):
            if having := [sample for sample in batch if picture in sample]:
                latents = vae.encode(to_tensor([sample.pop(picture) for sample in having]).to(device))
                for sample, row in zip(having, latents.half().cpu().numpy(), strict=True):
                    sample[name] = row
        samples += batch
    return Made(write_block(path, samples, None), tuple(rejected))


@lru_cache(maxsize=1)
def _load(space: LatentConfig, workers: int) -> LatentSpace:
    """Load a VAE, once a process."""
    device_of_worker(workers)
    return LatentSpace(space)
