"""ddt evaluate reconstruction: pictures to ids and back."""

import hashlib
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.features import Inception, Lite0, frechet, lite0_installed, lpips
from ddt_apps.evaluation.heldout import held_out_scenes
from ddt_apps.evaluation.models import Tokenizes, codec_of
from ddt_apps.evaluation.pixels import l1, psnr, ssim
from ddt_apps.evaluation.scores import Scores, versions
from ddt_data import ShardDataset, level_config, render
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import to_tensor, to_uint8


@dataclass(frozen=True)
class ReconstructionSettings:
    """Settings of `ddt evaluate reconstruction`."""

    data: str | None = None  # folder of picture shards; held-out scenes of `level` if not given
    level: str = "standard"  # tiny, standard or hard
    count: int = 1000  # pictures
    seed: int = 0  # of the scenes
    inception: str | None = None  # TorchScript file of Inception features, for rFID
    lpips: str | None = None  # alex, vgg or squeeze, where torchvision and its weights are there

    def __post_init__(self):
        level_config(self.level)
        if self.count < 2:
            raise ValueError(f"count ({self.count}) of pictures must be at least 2")


@dataclass
class Reconstructed:
    """What the page shows; pictures uint8 [N, H, W, 3], of prefixes by the number of ids kept."""

    originals: np.ndarray
    drawn: np.ndarray
    prefixes: dict[int, np.ndarray]
    psnr: list[float]


def evaluate_reconstruction(
    model: Tokenizes, settings: ReconstructionSettings = ReconstructionSettings(), name: str = "model"
) -> tuple[Scores, Reconstructed]:
    """Score a tokenizer with its decoder: pictures are compared after rounding to 8 bits, with the true input.

    PSNR and SSIM are means over pictures; bits are ids times log2 of the codebook. With EfficientNet-Lite0 installed
    also EffFID, rEffLPIPS and CVS-like (substitutes, see `ddt_apps.evaluation.features`); with weights of the user's
    rFID and LPIPS. Beside it the mean picture, and prefixes of the coarsest ids where `decode` takes `keep_tokens`.

    Raises:
        ValueError: The model has no tokenizer, or the pictures have another size.
    """
    codec = codec_of(model)
    if codec is None:
        raise ValueError(
            f"evaluate reconstruction needs a model with encode() and decode(); {type(model).__name__} has none"
        )
    pictures, source = _pictures(settings, codec.image_size)
    images = to_tensor(pictures)
    ids = in_batches("encode", len(images), lambda r: codec.encode(images[r]))

    def decoded(**keep: int) -> Tensor:
        drawn = in_batches("decode", len(ids), lambda r: to_uint8(codec.decode(ids[r], **keep)))
        return to_tensor(drawn)

    drawn = decoded()
    each = psnr(drawn, images)
    scores: dict[str, Any] = {
        "psnr": float(each.mean()),
        "psnr_standard_error": float(each.std() / math.sqrt(len(each))),
        "ssim": float(in_batches("ssim", len(images), lambda r: ssim(drawn[r], images[r])).mean()),
        "l1": float(l1(drawn, images).mean()),
        "tokens": codec.num_tokens,
        "bits_per_image": codec.num_tokens * math.log2(codec.codebook_size),
        "bits_per_pixel": codec.num_tokens * math.log2(codec.codebook_size) / codec.image_size**2,
    }
    if hasattr(codec, "tokenizer"):
        health = codebook_health(ids, codec.tokenizer.quantizer.codebook)
        scores["codebook_usage"] = health.usage
        scores["codes_per_position"] = health.codes_per_position
    instruments: dict[str, str] = {}
    if lite0_installed():
        lite0 = Lite0()
        instruments["efficientnet_lite0"] = lite0.hash
        pairs = {"r_eff_lpips": lite0.distance, "cvs_like": lite0.similarity}
        for figure, compare in pairs.items():
            values = in_batches(figure, len(images), lambda r, f=compare: f(drawn[r], images[r]))
            scores[figure] = float(values.mean())
        scores["eff_fid"] = frechet(lite0, drawn, images)
    if settings.inception:
        inception = Inception(settings.inception)
        instruments["inception"] = inception.hash
        scores["rfid"] = frechet(inception, drawn, images)
    if settings.lpips:
        instruments["lpips"] = settings.lpips
        scores["lpips"] = lpips(settings.lpips, drawn, images)

    mean = images.mean(0, keepdim=True).expand_as(images)
    controls: dict[str, Any] = {
        "mean_picture": {"psnr": float(psnr(mean, images).mean()), "l1": float(l1(mean, images).mean())}
    }
    prefixes: dict[int, Tensor] = {}
    if "keep_tokens" in inspect.signature(codec.decode).parameters:
        kept = [2**i for i in range(codec.num_tokens.bit_length()) if 2**i < codec.num_tokens]
        prefixes = {n: decoded(keep_tokens=n) for n in kept}
    curve = {str(n): float(psnr(some, images).mean()) for n, some in prefixes.items()}
    controls["psnr_from_coarsest"] = curve | {str(codec.num_tokens): scores["psnr"]}
    protocol = {
        "data": source,
        "count": len(images),
        "seed": settings.seed,
        "image_size": codec.image_size,
        "compared": "8-bit pictures with the true input, per picture, then averaged",
        "instruments": instruments,
        "versions": versions(),
    }
    info = {"name": name, **getattr(model, "identity", {})}
    page = Reconstructed(pictures, to_uint8(drawn), {n: to_uint8(p) for n, p in prefixes.items()}, each.tolist())
    return Scores("reconstruction", info, protocol, scores, controls), page


def _pictures(settings: ReconstructionSettings, image_size: int) -> tuple[np.ndarray, str]:
    """Pictures [N, H, W, 3], and what they are for the protocol."""
    if settings.data is None:
        scenes, config = held_out_scenes(settings.level, image_size, settings.count, settings.seed)
        return np.stack([render(s.scene, config) for s in scenes]), f"held-out scenes, level {settings.level}"
    shards = ShardDataset(settings.data)
    if shards.manifest.image_size != image_size:
        raise ValueError(
            f"pictures in '{settings.data}' have {shards.manifest.image_size} px, the tokenizer takes {image_size}; "
            f"pack them again with --image-size {image_size}"
        )
    hashes = "".join(shard.sha256 for shard in shards.manifest.shards)
    count = min(settings.count, len(shards))
    pictures = np.stack([shards[i]["image"] for i in range(count)])
    return pictures, f"{Path(settings.data).name}, shards {hashlib.sha256(hashes.encode()).hexdigest()[:12]}"
