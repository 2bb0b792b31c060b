"""What single tokens carry: what a swapped one changes, how a plain patch is written, what either end of the ids gives.

Shape letters: N pictures, K tokens, P patches.
"""

import math

import torch
from torch import Tensor

from ddt_decoder.flow import noised, shift_time
from ddt_decoder.precision import computing
from ddt_tokenizer.codec import Codec

ENOUGH = 20  # plain patches from which the codes at a position are counted


@torch.inference_mode()
def from_finest(codec: Codec, ids: Tensor, count: int) -> Tensor:
    """Draw ids [N, K] in one step from the `count` finest, V_1..V_count: images [N, 3, H, W] in [-1, 1].

    A decode keeps the coarsest (`keep_tokens`); this is the other end, to see which one carries what.
    """
    tokens = codec.decoder.as_tokens(ids.to(codec.decoder.codebook.device))
    return _estimate(codec, _noise(codec, len(ids)), torch.ones(len(ids)), tokens[:, :count])


@torch.inference_mode()
def at_noise(codec: Codec, latents: Tensor, ids: Tensor, t: float, shown: str) -> Tensor:
    """Estimate clean images from noisy ones at the unshifted time `t`, beside all, none or k(t) of their ids.

    Args:
        latents: [N, C, h, w], clean; pixels are their own.
        ids: [N, K].
        shown: "all", "none", or "k(t)", as in a drawing of many steps.

    Returns:
        Images [N, 3, H, W] in [-1, 1].
    """
    decoder, ids = codec.decoder, ids.to(codec.decoder.codebook.device)
    times = torch.full((len(ids),), t)
    shifted = shift_time(times, decoder.config.flow.time_shift)
    noisy = noised(latents, _noise(codec, len(ids)), shifted)
    visible = {"all": None, "none": torch.zeros(ids.shape, dtype=torch.bool), "k(t)": decoder.schedule.visible(times)}
    return _estimate(codec, noisy, shifted, decoder.as_tokens(ids), visible[shown])


def _noise(codec: Codec, count: int) -> Tensor:
    latents = codec.decoder.config.latents
    side = codec.image_size // latents.downscale
    return torch.randn(count, latents.channels, side, side, generator=torch.Generator().manual_seed(0))


def _estimate(codec: Codec, x: Tensor, t: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
    """Turn what the network says of x at shifted times into images, on the CPU."""
    decoder = codec.decoder
    device = decoder.codebook.device
    x, t, visible = x.to(device), t.to(device), None if visible is None else visible.to(device)
    with computing(decoder.precision, device):
        output = decoder.network(x, t, tokens, visible)
    clean = output if decoder.config.flow.network_output == "x0" else x - t.view(-1, 1, 1, 1) * output
    return decoder.latent_space.decode(clean.float()).clamp(-1, 1).cpu()


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


def locality(changes: Tensor) -> Tensor:
    """Compute the share of a swap's change [K, P] that lies in one patch: [K], each 1 / P to 1, NaN of no change."""
    return changes.max(1).values / changes.sum(1)


def eighths(values: Tensor) -> list[float | None]:
    """Average values of positions [K] by eighths of them, from coarse to fine; NaN is left out, None where all are.

    Example:
        >>> eighths(torch.arange(16.0))
        [14.5, 12.5, 10.5, 8.5, 6.5, 4.5, 2.5, 0.5]
    """
    means = [part.nanmean().item() for part in values.flip(0).tensor_split(8)]
    return [None if math.isnan(mean) else mean for mean in means]


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
