"""The space that the decoder draws in: pixels, or the latents of a diffusers autoencoder.

Shape letters: B batch, C channels; H, W pixels, h, w latents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LatentConfig:
    """What latents are: (z - shift) * scale of an autoencoder's z, or the pixels themselves.

    Example:
        >>> LatentConfig.sd3(vae="folder/of/the/vae").downscale
        8
    """

    channels: int = 3
    downscale: int = 1  # pixels to a side of one latent
    shift: float = 0.0
    scale: float = 1.0
    # Folder or Hub id of a diffusers AutoencoderKL or AutoencoderTiny; an id may go on with a subfolder, as in
    # owner/name/vae. None: pixels.
    vae: str | None = None

    @classmethod
    def sd3(cls, vae: str | None = None) -> "LatentConfig":
        """Name the latents of Stable Diffusion 3 (arXiv:2403.03206), as Selftok uses them."""
        return cls(channels=16, downscale=8, shift=0.0609, scale=1.5305, vae=vae)

    @classmethod
    def from_vae(cls, vae: str) -> "LatentConfig":
        """Read channels, downscale, shift and scale from the config of an AutoencoderKL or AutoencoderTiny.

        Raises:
            ValueError: If it is another kind of autoencoder, or is not there.
        """
        config = _vae_config(str(vae))
        blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
        return cls(
            channels=config["latent_channels"],
            downscale=2 ** (len(blocks) - 1),
            shift=config.get("shift_factor") or 0.0,
            scale=config.get("scaling_factor") or 1.0,
            vae=str(vae),
        )


class LatentSpace:
    """Latents to images. The autoencoder is frozen, loaded on first use, and never part of a checkpoint.

    Args:
        config: See `LatentConfig`.

    Example:
        >>> LatentSpace(LatentConfig()).decode(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, config: LatentConfig):
        self.config = config
        self._vae: nn.Module | None = None

    def load(self) -> None:
        """Load the autoencoder, if there is one and it is not yet loaded.

        Raises:
            ValueError: If these latents are not pixels and no autoencoder is named, it cannot be loaded, or it is of
                another latent space.
        """
        config = self.config
        if config.vae is None and (config.channels != 3 or config.downscale != 1):
            raise ValueError(
                f"latents of {config.channels} channels need an autoencoder; set latents.vae to its folder or Hub id"
            )
        if config.vae is not None and self._vae is None:
            found = LatentConfig.from_vae(config.vae)
            for name in ("channels", "downscale"):
                if getattr(found, name) != getattr(config, name):
                    raise ValueError(
                        f"autoencoder '{config.vae}' has {name} {getattr(found, name)}, latents.{name} is "
                        f"{getattr(config, name)}; use the autoencoder that the decoder was trained with"
                    )
            with torch.inference_mode(False):  # else a first use inside `decode` would spoil it for training
                self._vae = _load_vae(config.vae)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into images float32 [B, 3, H, W], about [-1, 1]; gradients pass.

        Raises:
            ValueError: As `load`.
        """
        self.load()
        if self._vae is None:
            return latents.float()
        self._vae = self._vae.to(latents.device)
        return self._vae.decode(latents.float() / self.config.scale + self.config.shift).sample


def _vae_config(vae: str) -> dict[str, Any]:
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        raise ValueError(f"autoencoder '{vae}' needs {error.name}; install ddt-decoder[vae]") from error

    source, where = split_source(vae)
    try:
        config = AutoencoderKL.load_config(source, **where)
    except OSError as error:
        raise ValueError(f"autoencoder '{vae}' cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    if config.get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ValueError(f"'{vae}' holds a {config.get('_class_name')}; use an AutoencoderKL or AutoencoderTiny")
    return config


def _load_vae(vae: str) -> nn.Module:
    import diffusers

    kind = getattr(diffusers, _vae_config(vae)["_class_name"])
    source, where = split_source(vae)
    return kind.from_pretrained(source, **where).requires_grad_(False).eval()


def split_source(vae: str) -> tuple[str, dict[str, str]]:
    """A folder as it is; of a Hub id the repository, and the subfolder if it names one."""
    parts = vae.split("/")
    if Path(vae).is_dir() or len(parts) < 3 or vae.startswith(("/", ".")):
        return vae, {}
    return "/".join(parts[:2]), {"subfolder": "/".join(parts[2:])}
