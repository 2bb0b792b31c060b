"""Pictures to train on: picture shards, or shards of the latents that a VAE made of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddt_data import Mixture, open_shards
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.images import to_tensor


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What to train on, and what is held out."""

    dataset: Mixture
    held_out: Tensor  # the last pictures [n, 3, H, W], or their latents [n, C, h, w]
    space: LatentConfig | None  # of the latents that the shards hold; None for pictures
    collate: Callable[[list[dict]], Tensor]  # samples to images [B, 3, H, W], or to latents [B, C, h, w]


def open_pictures(data: str, image_size: int, held_out: int, vae: str | None = None) -> Pictures:
    """Open picture shards, or shards of latents, once.

    Args:
        data: A shard folder, or several with their shares.
        image_size: Side that pictures must have, also those behind latents.
        held_out: How many of the last samples are not trained on.
        vae: Folder or Hub id of the autoencoder whose latents the shards have to hold, if they hold latents.

    Raises:
        FileNotFoundError: If the shards are missing.
        ValueError: If they hold neither pictures nor latents, too few, or those of another size or latent space.
    """
    dataset = open_shards(data)
    space = LatentConfig(**dataset.manifest.latents) if dataset.manifest.latents else None
    if space is None:
        _check_pictures(data, dataset.manifest.image_size, image_size)
    else:
        sizes = [source[0]["latents"].shape[-1] * space.downscale for source in dataset.sources]
        _check_latents(data, space, sizes, image_size, vae)
    kept = dataset.without_last(held_out)
    last = [dataset[i] for i in range(len(kept), len(dataset))]
    shown = torch.empty(0)
    if last:
        shown = latents_of(last) if space else to_tensor([sample["image"] for sample in last])
    return Pictures(dataset=kept, held_out=shown, space=space, collate=latents_of if space else pictures_of)


def pictures_of(samples: list[dict]) -> Tensor:
    """Collate the pictures of samples, targets of edits included, into images [B, 3, H, W].

    The target of an edit stands in for its source in half of the samples, so that the batch keeps its size.
    """
    return to_tensor(list(_turns(samples, "image", "target")))


def latents_of(samples: list[dict]) -> Tensor:
    """Collate the latents of samples into [B, C, h, w]; targets of edits as `pictures_of` does."""
    return torch.stack([torch.from_numpy(row).float() for row in _turns(samples, "latents", "target_latents")])


def _turns(samples: list[dict], source: str, target: str) -> Iterator[Any]:
    yield from (sample[target] if target in sample and i % 2 else sample[source] for i, sample in enumerate(samples))


def _check_pictures(data: str, size: int | None, wanted: int) -> None:
    if size is None:
        raise ValueError(f"'{data}' holds no pictures; make picture shards with: ddt data pack, ddt data scenes")
    if size != wanted:
        raise ValueError(
            f"pictures in '{data}' have {size} px, the tokenizer takes {wanted}; pack them again, or set "
            f"codec.image_size"
        )


def _check_latents(data: str, found: LatentConfig, sizes: list[int], wanted: int, vae: str | None) -> None:
    space = LatentConfig.from_vae(vae) if vae else found
    if replace(found, vae=None) != replace(space, vae=None):
        raise ValueError(f"latents in '{data}' are of {found}, the tokenizer takes {space}; cache them again")
    if other := [size for size in sizes if size != wanted]:
        raise ValueError(f"pictures behind '{data}' have {other[0]} px, the tokenizer takes {wanted}; cache others")
