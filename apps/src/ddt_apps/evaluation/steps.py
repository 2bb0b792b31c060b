"""What a decoder draws in one step and in many: how much reads right, how sharp it is, how like the originals."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches, read
from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.page import spread
from ddt_apps.evaluation.scenes import Settings, real_pictures, summary
from ddt_apps.evaluation.scores import ERROR
from ddt_apps.features import frechet
from ddt_data import Judge, load_prompts, verdict
from ddt_data.sceneeval.prompts import Prompt
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import psnr, to_tensor, to_uint8
from ddt_tokenizer.precision import computing

STEPS = (1, 8, 25)
# How many steps are drawn: as trained, with all ids at each, and then guided but for the last touches. Why:
# docs/results/order.md.
GUIDED = {"all_tokens": True, "guidance_scale": 2.0, "guidance_interval": (0.2, 1.0)}
MANY = {"": {}, ", all ids": {"all_tokens": True}, ", all ids, guided": GUIDED}


def ways_to_draw(codec: Codec, images: Tensor, ids: Tensor) -> dict[str, Callable[[slice], Tensor]]:
    """List ways from pictures [N, 3, H, W] back to pictures: a name, and what draws rows of them.

    `autoencoder` goes to latents and back, where there are any; `not quantized` draws in one step from the vectors in
    place of their codes; `N steps` draws from ids [N, K], many of them in the ways of `MANY`; `renderer` where there is
    one.
    """
    space, tokenizer, device = codec.decoder.latent_space, codec.tokenizer, codec.decoder.codebook.device

    def unquantized(rows: slice) -> Tensor:
        with computing(tokenizer.precision, device):
            vectors = tokenizer.encoder(tokenizer.latent_space.encode(images[rows].to(device)))
        return codec.decode(tokenizer.quantizer.continuous(vectors), num_steps=1)

    ways: dict[str, Callable[[slice], Tensor]] = {}
    if not space.config.pixels:
        ways["autoencoder"] = lambda rows: space.decode(space.encode(images[rows].to(device)))
    ways["not quantized"] = unquantized
    for count in STEPS:
        for how, settings in MANY.items() if count > 1 else [("", {})]:
            name = "1 step" if count == 1 else f"{count} steps{how}"
            ways[name] = lambda rows, s={"num_steps": count, **settings}: codec.decode(ids[rows], **s)
    if codec.renderer is not None:
        ways["renderer"] = lambda rows: codec.decode(ids[rows])
    return ways


def asked_scenes(level: str, image_size: int, count: int, seed: int) -> tuple[list[Prompt], np.ndarray]:
    """Return prompts of SceneEval, `count` of them or all there are, and a real picture uint8 of each."""
    prompts = load_prompts(level)
    prompts = [prompts[i] for i in spread(range(len(prompts)), count)]
    return prompts, real_pictures(prompts, Settings(level=level, seed=seed), image_size)


def measure(
    codec: Codec, originals: np.ndarray, judge: Judge, canvas: int, prompts: Sequence[Prompt] | None
) -> dict[str, Figures]:
    """Draw pictures uint8 [N, H, W, 3] in each of the `ways_to_draw`.

    Returns:
        For each way: `psnr`; where the pictures are of `prompts`, `overall`, the percentage that SceneEval judges
        right; `sharpness`, the energy of the Laplacian over that of the originals, 1 being as sharp; `distance`, the
        Frechet distance of the judge's features from those of the originals, 0 being alike.
    """
    images = to_tensor(originals)
    ids = in_batches("encode", len(images), lambda rows: codec.encode(images[rows]))
    features, sharp = _Features(judge, canvas), sharpness(images)
    found = {}
    for way, draw in ways_to_draw(codec, images, ids).items():
        drawn = in_batches(way, len(images), lambda rows, draw=draw: to_uint8(draw(rows)))
        pictures = to_tensor(drawn)
        found[way] = {
            **mean_of("psnr", psnr(pictures, images)),
            "sharpness": sharpness(pictures) / sharp,
            "distance": frechet(features, pictures, images),
        }
        if prompts is not None:
            seen = read(judge, drawn, canvas)
            right = summary(prompts, [verdict(*pair) for pair in zip(prompts, seen, strict=True)])
            found[way] |= {"overall": right["overall"], "overall" + ERROR: right["standard_error"]}
    return found


def sharpness(images: Tensor) -> float:
    """Compute the mean square of the Laplacian of images [N, C, H, W]: what changes from pixel to pixel.

    Example:
        >>> sharpness(torch.zeros(1, 3, 8, 8)), round(sharpness(torch.eye(8)[None, None]), 2)
        (0.0, 3.78)
    """
    middle, around = images[..., 1:-1, 1:-1], 0
    for rows, columns in ((slice(-2), slice(1, -1)), (slice(2, None), slice(1, -1))):
        around = around + images[..., rows, columns] + images[..., columns, rows]
    return (4 * middle - around).square().mean().item()


class _Features(torch.nn.Module):
    """What `frechet` asks for: uint8 pictures to features."""

    num_features = 128

    def __init__(self, judge: Judge, canvas: int):
        super().__init__()
        self.judge, self.canvas = judge, canvas

    def forward(self, pictures: Tensor) -> Tensor:
        images, side = pictures.float() / 127.5 - 1, (self.canvas, self.canvas)
        return self.judge.features(F.interpolate(images, side, mode="bicubic", antialias=True).clamp(-1, 1))
