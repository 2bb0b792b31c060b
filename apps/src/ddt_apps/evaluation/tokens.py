"""What single tokens carry: what a swapped one changes, how a plain patch is written, what either end of the ids gives.

Shape letters: N pictures, K tokens, P patches.
"""

import math

import torch
from torch import Tensor

from ddt_tokenizer.codec import Codec

ENOUGH = 20  # plain patches from which the codes at a position are counted


@torch.inference_mode()
def from_finest(codec: Codec, ids: Tensor, count: int) -> Tensor:
    """Draw ids [N, K] in one step from the `count` finest, V_1..V_count: images [N, 3, H, W] in [-1, 1].

    A decode keeps the coarsest (`keep_tokens`); this is the other end, to see which one carries what.
    """
    decoder = codec.decoder
    t = torch.ones(len(ids))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(ids), 3, codec.image_size, codec.image_size, generator=generator)
    output = decoder.network(noise, t, decoder.as_tokens(ids)[:, :count])
    clean = output if decoder.config.flow.network_output == "x0" else noise - output
    return clean.clamp(-1, 1)


def patch_changes(codec: Codec, ids: Tensor) -> Tensor:
    """Take one of the ids [N, K] from the next picture: squared change of each patch, mean over pictures, [K, P].

    Patches are those of the encoder, row by row.
    """
    patch, drawn = codec.tokenizer.config.multiple, codec.decode(ids, num_steps=1)
    changes = []
    for k in range(codec.num_tokens):
        swapped = ids.clone()
        swapped[:, k] = ids.roll(1, 0)[:, k]
        squared = (codec.decode(swapped, num_steps=1) - drawn).square().mean(1)
        changes.append(squared.unfold(1, patch, patch).unfold(2, patch, patch).mean((0, 3, 4)).flatten())
    return torch.stack(changes)


def locality(changes: Tensor) -> float:
    """Compute the share of what a swapped token changes [K, P] that lies in one patch, mean over tokens: 1 / P to 1."""
    return float((changes.max(1).values / changes.sum(1)).mean())


def plain_patch_codes(ids: Tensor, images: Tensor, changes: Tensor) -> float:
    """Count the codes that a position takes where the patch that it changes most is plain white, mean over positions.

    One code would do. Positions whose patch is white in fewer than 20 pictures are left out; NaN if all are.

    Args:
        ids: [N, K].
        images: [N, 3, H, W] in [-1, 1].
        changes: [K, P], of `patch_changes`.
    """
    side = math.isqrt(changes.shape[1])
    patch = images.shape[-1] // side
    white = (images.unfold(2, patch, patch).unfold(3, patch, patch) > 0.99).all(-1).all(-1).all(1).flatten(1)
    places = changes.argmax(1).tolist()
    counts = [len(ids[white[:, p], k].unique()) for k, p in enumerate(places) if white[:, p].sum() >= ENOUGH]
    return sum(counts) / len(counts) if counts else math.nan
