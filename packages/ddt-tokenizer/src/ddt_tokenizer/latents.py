"""Latent spaces, on which encoder and decoder work: pixels, or the latents of a VAE of diffusers (extra `[vae]`).

Shape letters: B batch, C channels; H, W pixels; h, w latents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .checkpoint import SizeError, check_sizes
from .limits import FiniteFloat, PositiveFloat, PositiveInt, check_settings
from .shipped import folder_of

# What diffusers raises of a config.json that is none.
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SafetensorError,
    SizeError,
)


@dataclass(frozen=True)
class LatentConfig:
    """A latent space: latents = (z - shift) * scale, z being what the VAE writes (the mode of its posterior)."""

    channels: PositiveInt = 3
    downscale: PositiveInt = 1  # pixels a latent, along each side
    shift: FiniteFloat = 0.0
    scale: PositiveFloat = 1.0
    # Folder or Hub id of an AutoencoderKL or AutoencoderTiny; an id may go on with a subfolder, as in owner/name/vae.
    # None: the latents are pixels, or (downscale above 1) given by the caller.
    vae: str | None = None

    def __post_init__(self):
        check_settings(self)

    @property
    def pixels(self) -> bool:
        """Whether latents are the pixels themselves."""
        return self.vae is None and (self.channels, self.downscale, self.shift, self.scale) == (3, 1, 0.0, 1.0)

    @classmethod
    def sd3(cls, vae: str | None = None) -> Self:
        """Return the latents of Stable Diffusion 3 (arXiv:2403.03206), which Selftok uses.

        Example:
            >>> LatentConfig.sd3().channels
            16
        """
        return cls(channels=16, downscale=8, shift=0.0609, scale=1.5305, vae=vae)

    @classmethod
    def from_vae(cls, vae: str) -> Self:
        """Read channels, downscale, shift and scale from the configuration of a VAE.

        Raises:
            ValueError: If it is neither an AutoencoderKL nor an AutoencoderTiny, or is not there.
        """
        settings = _settings(vae)
        try:
            blocks = settings.get("encoder_block_out_channels") or settings["block_out_channels"]
            return cls(
                channels=settings["latent_channels"],
                downscale=2 ** (len(blocks) - 1),
                shift=settings.get("shift_factor") or 0.0,
                scale=settings.get("scaling_factor") or 1.0,
                vae=vae,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"config.json of VAE '{vae}' is damaged ({error}); fetch it again") from error


class LatentSpace:
    """Turns images into latents and back with a frozen VAE, which is loaded at first use and is part of no checkpoint.

    Example:
        >>> pixels = LatentSpace(LatentConfig())
        >>> pixels.decode(pixels.encode(torch.zeros(1, 3, 8, 8))).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, config: LatentConfig):
        self.config = config
        self._vae: nn.Module | None = None

    def load(self) -> nn.Module | None:
        """Return the VAE, which is loaded if it is not yet; None where latents are pixels.

        Raises:
            FileNotFoundError: If the VAE has no weights in safetensors.
            ValueError: If these latents are not pixels and no VAE is named, it is damaged, or it is of another latent
                space.
        """
        config = self.config
        if config.pixels or self._vae is not None:
            return self._vae
        if config.vae is None:
            raise ValueError(
                f"latents.vae is not set, and latents have {config.channels} channels; name the folder or Hub id of "
                f"the VAE (from_pretrained(..., vae=...)), or work with latents alone"
            )
        found = LatentConfig.from_vae(config.vae)
        for name in ("channels", "downscale"):
            if getattr(found, name) != getattr(config, name):
                raise ValueError(
                    f"VAE '{config.vae}' has {name} {getattr(found, name)}, latents.{name} is {getattr(config, name)}; "
                    f"use the VAE of the training"
                )
        import diffusers

        kind = getattr(diffusers, _settings(config.vae)["_class_name"])
        with torch.inference_mode(False):  # else a first use in inference would spoil it for training
            self._vae = load_diffusers(kind, config.vae).requires_grad_(False).eval()
        return self._vae

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in [-1, 1] into latents [B, C, h, w]; errors as in `load`."""
        self.load()
        if self._vae is None:
            return images
        vae = self._vae.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            encoded = vae.encode(images.to(vae.dtype))
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (z.float() - self.config.shift) * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into float32 [B, 3, H, W], about [-1, 1]; gradients pass; errors as in `load`."""
        self.load()
        if self._vae is None:
            return latents.float()
        vae = self._vae.to(latents.device)
        return vae.decode(latents.float() / self.config.scale + self.config.shift).sample


def _settings(vae: str) -> dict[str, Any]:
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        raise ValueError(f"VAE '{vae}' needs {error.name}; install this package with its extra [vae]") from error

    source, where = split_source(vae)
    try:
        settings = AutoencoderKL.load_config(source, **where)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"VAE '{vae}' cannot be loaded ({_line(error)})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config.json of VAE '{vae}' is damaged (it holds no settings); fetch it again")
    if settings.get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ValueError(f"VAE '{vae}' is a {settings.get('_class_name')}; name an AutoencoderKL or AutoencoderTiny")
    return settings


def load_diffusers(kind: Any, source: str) -> nn.Module:
    """Load a model of diffusers, all of it, from a folder or Hub id as in `split_source`; nothing is unpickled.

    Args:
        kind: Its class.

    Raises:
        FileNotFoundError: If it is not there, or has no weights in safetensors.
        ValueError: If it is damaged or incomplete.
    """
    name, where = split_source(source)
    file = Path(name, *where.values(), "diffusion_pytorch_model.safetensors")
    try:
        if file.is_file():  # in one piece, on this machine
            check_sizes(file, lambda: kind.from_config(kind.load_config(name, **where)), renamed=True)
        model, loaded = kind.from_pretrained(name, use_safetensors=True, output_loading_info=True, **where)
    except OSError as error:
        remedy = "pickled weights (.bin) are not read: save them again as safetensors, with safe_serialization=True"
        raise FileNotFoundError(f"no {kind.__name__} in '{source}' ({_line(error)}); {remedy}") from error
    except DAMAGED as error:
        raise ValueError(f"the {kind.__name__} in '{source}' is damaged ({_line(error)}); fetch it again") from error
    if missing := loaded["missing_keys"]:
        raise ValueError(f"the {kind.__name__} in '{source}' lacks {sorted(missing)[0]}; fetch it again")
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def split_source(vae: str) -> tuple[str, dict[str, str]]:
    """Return a folder as it is; of a Hub id the repository, and the subfolder if it names one.

    `NAME/vae` is that of a model that comes with this package.
    """
    parts = vae.split("/")
    if len(parts) == 2 and (here := folder_of(*parts)) != Path(parts[0]):
        return str(here), {}
    if Path(vae).is_dir() or len(parts) < 3 or vae.startswith(("/", ".")):
        return vae, {}
    return "/".join(parts[:2]), {"subfolder": "/".join(parts[2:])}
