"""ddt evaluate reconstruction: pictures to ids and back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from torch import Tensor

from ddt_apps.evaluation.batches import in_batches
from ddt_apps.evaluation.heldout import held_out_scenes, shard_pictures
from ddt_apps.evaluation.means import Figures, mean_of
from ddt_apps.evaluation.models import Tokenizes, codec_of, computed, described, prefixes_of
from ddt_apps.evaluation.page import Page, against
from ddt_apps.evaluation.pixels import l1, ssim
from ddt_apps.evaluation.scores import ERROR, Scores, shown, versions
from ddt_apps.features import Inception, Lite0, frechet, lite0_installed, lpips
from ddt_apps.pages.chart import line_chart
from ddt_apps.pages.report import section, strip
from ddt_data import level_config, render
from ddt_tokenizer.health import codebook_health
from ddt_tokenizer.images import psnr, to_tensor, to_uint8
from ddt_tokenizer.limits import Seed, check_settings
from ddt_tokenizer.precision import Precision

IDS_KEPT = "ids kept, from the coarse end"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `ddt evaluate reconstruction`."""

    data: str | None = None  # folder of picture shards; held-out scenes of `level` if not given
    level: str = "standard"  # tiny, standard or hard
    count: Annotated[int, Ge(2)] = 1000  # pictures
    seed: Seed = 0  # of the scenes
    precision: Precision = "32"  # in which a run of ours computes: 32 or bf16
    inception: str | None = None  # TorchScript file of Inception features, for rFID
    lpips: str | None = None  # alex, vgg or squeeze, where torchvision and its weights are there

    def __post_init__(self):
        check_settings(self)
        level_config(self.level)


@dataclass
class Reconstructed:
    """What the page shows; pictures uint8 [N, H, W, 3], of prefixes by the number of ids kept."""

    originals: np.ndarray
    drawn: np.ndarray
    prefixes: dict[int, np.ndarray]
    psnr: list[float]


def evaluate(model: Tokenizes, settings: Settings = Settings(), name: str = "model") -> tuple[Scores, Reconstructed]:
    """Score a tokenizer with its decoder: pictures are compared after rounding to 8 bits, with the true input.

    PSNR and SSIM are means over pictures; bits are ids times log2 of the codebook. With EfficientNet-Lite0 installed
    also EffFID, rEffLPIPS and CVS-like (substitutes, see `ddt_apps.features`); with weights of the user's
    rFID and LPIPS. Beside it the mean picture, prefixes of the coarsest ids where `decode` takes `keep_tokens`, and
    eight denoising steps where there is a decoder of ours.

    Raises:
        ValueError: If the model has no tokenizer, or the pictures have another size.
    """
    codec = codec_of(model)
    if codec is None:
        raise ValueError(
            f"evaluate reconstruction needs a model with encode() and decode(); {type(model).__name__} has none"
        )
    if settings.data is None:
        scenes, config = held_out_scenes(settings.level, codec.image_size, settings.count, settings.seed)
        pictures = np.stack([render(s.scene, config) for s in scenes])
        source = f"held-out scenes, level {settings.level}"
    else:
        pictures, source = shard_pictures(settings.data, codec.image_size, settings.count)
    images = to_tensor(pictures)
    ids = in_batches("encode", len(images), lambda r: codec.encode(images[r]))

    def decoded(**how: int) -> Tensor:
        return to_tensor(in_batches("decode", len(ids), lambda r: to_uint8(codec.decode(ids[r], **how))))

    drawn = decoded()
    each = psnr(drawn, images)
    features, instruments = _features(settings, drawn, images)
    scores: Figures = {
        **mean_of("psnr", each),
        **mean_of("ssim", in_batches("ssim", len(images), lambda r: ssim(drawn[r], images[r]))),
        **mean_of("l1", l1(drawn, images)),
        "tokens": codec.num_tokens,
        "bits_per_image": codec.num_tokens * math.log2(codec.codebook_size),
        "bits_per_pixel": codec.num_tokens * math.log2(codec.codebook_size) / codec.image_size**2,
        **(_health(codec, ids) if hasattr(codec, "tokenizer") else {}),
        **features,
    }
    controls, prefixes = _controls(codec, images, scores, decoded)
    protocol = {
        "data": source,
        "count": len(images),
        "seed": settings.seed,
        "image_size": codec.image_size,
        "compared": "8-bit pictures with the true input, per picture, then averaged",
        "instruments": instruments,
        "versions": versions(),
        **computed(model),
    }
    page = Reconstructed(pictures, to_uint8(drawn), {n: to_uint8(p) for n, p in prefixes.items()}, each.tolist())
    return Scores("reconstruction", described(model, name), protocol, scores, controls), page


def _health(codec: Any, ids: Tensor) -> Figures:
    health = codebook_health(ids, codec.tokenizer.quantizer.codebook)
    names = {"codebook_usage": "usage", "codes_per_position": "codes_per_position"}
    names |= {"code_bits_per_position": "bits_per_position", "code_effective_dimensions": "effective_dimensions"}
    return {figure: getattr(health, name) for figure, name in names.items()}


def _features(settings: Settings, drawn: Tensor, images: Tensor) -> tuple[Figures, dict[str, str]]:
    """Figures of networks that are installed or asked for, and which networks these are."""
    figures: Figures = {}
    instruments: dict[str, str] = {}
    if lite0_installed():
        lite0 = Lite0()
        instruments["efficientnet_lite0"] = lite0.hash
        for name, compare in {"r_eff_lpips": lite0.distance, "cvs_like": lite0.similarity}.items():
            figures |= mean_of(name, in_batches(name, len(images), lambda r, f=compare: f(drawn[r], images[r])))
        figures["eff_fid"] = frechet(lite0, drawn, images)
    if settings.inception:
        inception = Inception(settings.inception)
        instruments["inception"] = inception.hash
        figures["rfid"] = frechet(inception, drawn, images)
    if settings.lpips:
        instruments["lpips"] = settings.lpips
        figures["lpips"] = lpips(settings.lpips, drawn, images)
    return figures, instruments


def _controls(
    codec: Tokenizes, images: Tensor, scores: Figures, decoded: Callable[..., Tensor]
) -> tuple[dict[str, Figures], dict[int, Tensor]]:
    """What stands beside the scores, and the drawings from the n coarsest ids."""
    mean = images.mean(0, keepdim=True).expand_as(images)
    controls = {"mean_picture": mean_of("psnr", psnr(mean, images)) | mean_of("l1", l1(mean, images))}
    if hasattr(codec, "decoder"):
        controls["eight_steps"] = mean_of("psnr", psnr(decoded(num_steps=8), images))
    prefixes = {n: decoded(keep_tokens=n) for n in prefixes_of(codec)}
    curve, errors = {}, {}
    for n, some in prefixes.items():
        curve[str(n)], errors[str(n)] = mean_of("psnr", psnr(some, images)).values()
    whole = str(codec.num_tokens)
    controls["psnr_from_coarsest"] = curve | {whole: scores["psnr"]}
    controls["psnr_from_coarsest" + ERROR] = errors | {whole: scores["psnr" + ERROR]}
    return controls, prefixes


def page(scores: Scores, reconstructed: Reconstructed) -> Page:
    """Show all figures, the PSNR of prefixes, and pictures from the worst to the best."""
    figures, controls = scores.scores, scores.controls
    rows = [[name.replace("_", " "), shown(figures, name, 3)] for name in figures if not name.endswith(ERROR)]
    rows.append(["psnr of the mean picture (baseline)", shown(controls["mean_picture"], "psnr", 3)])
    if "eight_steps" in controls:
        rows.append(["psnr in eight denoising steps", shown(controls["eight_steps"], "psnr", 3)])
    curve = controls["psnr_from_coarsest"]
    prefixes = [[n, shown(controls, f"psnr_from_coarsest.{n}", 2)] for n in curve]
    order = sorted(range(len(reconstructed.psnr)), key=lambda i: reconstructed.psnr[i])
    some = [order[round(share * (len(order) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    sections = [
        section(
            "From the worst to the best",
            "Drawings from the coarsest ids, from all of them, and the originals.",
            strip([(f"measured picture {i}", _row(reconstructed, i)) for i in some]),
        )
    ]
    if len(curve) > 1:
        chart = line_chart({"PSNR": ([float(n) for n in curve], list(curve.values()))}, IDS_KEPT, "dB", markers=True)
        sections.append(section("From coarse to fine", "", chart))
    return Page(
        title="Pictures to ids and back",
        intro=f"{len(reconstructed.psnr)} pictures to ids and back; {scores.protocol['data']}.",
        metrics=[against(scores, "psnr", "mean_picture", "Reconstruction, PSNR", "the mean picture", "dB")],
        about=(
            "Means over pictures, \u00b1 one standard error. eff fid, r eff lpips and cvs like are substitutes on "
            "EfficientNet-Lite0."
        ),
        tables=[(["figure", "value"], rows), ([IDS_KEPT, "PSNR, dB"], prefixes)],
        sections=sections,
    )


def _row(reconstructed: Reconstructed, i: int) -> list[tuple[np.ndarray, str]]:
    """One picture, labelled, from its first ids to the original."""
    kept = {f"{n} id" + "s" * (n > 1): pictures for n, pictures in reconstructed.prefixes.items()}
    whole = {f"all ids, {reconstructed.psnr[i]:.1f} dB": reconstructed.drawn, "original": reconstructed.originals}
    return [(pictures[i], label) for label, pictures in (kept | whole).items()]
