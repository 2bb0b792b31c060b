"""ddt data latents: picture shards to shards of a VAE's latents, so that training of a tokenizer runs no VAE.

Like `ddt tokenize` shard by shard, in any number of processes, and on with the next shard after a stop.
"""

from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch

from ddt_apps.run.devices import pick_device
from ddt_apps.shards.tokenize import build_share, device_of_worker, shard_tasks
from ddt_data import Made, Manifest, Plan, Shard, open_shard, write_block
from ddt_data.shards.folder import check_shard
from ddt_data.shards.manifest import BLOCKS
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.latents import LatentSpace


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
        FileNotFoundError: If the shards are missing.
        FileExistsError: If `out` holds something else.
        ValueError: If the shards hold no pictures, or the VAE is missing.
    """
    _load.cache_clear()  # of another VAE, perhaps, that lay there when this process looked last
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
    make = partial(_make, Path(shards), source, space, batch_size, workers)
    plan = Plan(partial(shard_tasks, Path(shards), [asdict(space), batch_size]), make, manifest)
    return build_share("latents", out, plan, source.samples, workers)


@torch.inference_mode()
def _make(
    shards: Path, manifest: Manifest, space: LatentConfig, batch_size: int, workers: int, path: Path, shard: Shard
) -> Made:
    check_shard(shards, shard)
    vae, source, device = _load(space, workers), open_shard(shards / shard.name, manifest), pick_device()
    samples = []
    for first in range(0, len(source), batch_size):
        batch = [source[i] for i in range(first, min(first + batch_size, len(source)))]
        for picture, name in (("image", "latents"), ("target", "target_latents")):
            if having := [sample for sample in batch if picture in sample]:
                latents = vae.encode(to_tensor([sample.pop(picture) for sample in having]).to(device))
                for sample, row in zip(having, latents.half().cpu().numpy(), strict=True):
                    sample[name] = row
        samples += batch
    return Made(write_block(path, samples, None))


@lru_cache(maxsize=1)
def _load(space: LatentConfig, workers: int) -> LatentSpace:
    """Load a VAE, once a process."""
    device_of_worker(workers)
    return LatentSpace(space)
