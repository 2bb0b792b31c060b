"""Training of a small convolutional autoencoder, in whose latents a tokenizer works. Needs `[train]` and `[vae]`.

Shape letters: B batch, C channels; H, W pixels; h, w latents.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ddt_tokenizer.optimizer import scheduled
from ddt_tokenizer.ranks import gathered
from ddt_tokenizer.seeding import Rows, seed_step
from ddt_tokenizer.vae_training_config import VAEConfig, VAETrainingConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny


def build_vae(config: VAEConfig, seed: int = 0) -> "AutoencoderTiny":
    """Build an autoencoder of diffusers with random weights: images [B, 3, H, W] to latents [B, C, h, w] and back.

    Example:
        >>> vae = build_vae(VAEConfig(channels=4, downscale=4, width=8, depth=1))
        >>> vae.encode(torch.zeros(2, 3, 16, 16)).latents.shape
        torch.Size([2, 4, 4, 4])
    """
    from diffusers import AutoencoderTiny

    levels = config.downscale.bit_length()  # sizes, from pixels to latents
    blocks = (0, *(1,) * (levels - 2), config.depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderTiny(
            latent_channels=config.channels,
            encoder_block_out_channels=(config.width,) * levels,
            decoder_block_out_channels=(config.width,) * levels,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks[::-1],
        )


class VAETraining(LightningModule):
    """Minimises squared error, absolute error of the edges, and a little the size of latents, to which noise is added.

    Edges keep small things sharp. Noise makes latents smooth, so that a decoder's small errors stay small in pixels:
    what the variance of a VAE is for (arXiv:1312.6114), of one size for all. The randomness of a step is a function of
    (seed, step). Logs `loss`, `psnr` of the batch in dB, and `lr`.

    Args:
        vae: Trained in place, and left with its weights in channels-last.
        seed: Of the noise.
    """

    def __init__(self, vae: "AutoencoderTiny", config: VAETrainingConfig, seed: int = 0):
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.config, self.seed = config, seed

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Make the randomness a function of (seed, step), and of which batch of an accumulated step it is."""
        seed_step(self, batch_idx)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Compute the loss of images [B, 3, H, W]."""
        z = self.vae.encode(batch).latents
        spread = gathered(z.detach()).std()
        noisy = z + self.config.noise * spread * Rows.of_batch(len(z), z.device).noise(*z.shape[1:])
        drawn = self.vae.decode(noisy).sample.float()
        error = (drawn - batch).square().mean()
        edges = sum((ours - theirs).abs().mean() for ours, theirs in zip(_edges(drawn), _edges(batch), strict=True))
        loss = error + self.config.edges * edges + self.config.magnitude * z.float().square().mean()
        psnr = -10 * (error.detach() / 4).clamp(min=1e-10).log10()
        self.log_dict({"loss": loss, "psnr": psnr, "lr": self.lr_schedulers().get_last_lr()[0]})
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Build optimizer and schedule; the number of steps comes from the config."""
        return scheduled(self.named_parameters(), self.config.optimizer)


@torch.no_grad()
def standardise(vae: "AutoencoderTiny", images: Tensor) -> None:
    """Record shift and scale in the autoencoder's config, with which latents of such images have mean 0 and variance 1.

    Args:
        images: [B, 3, H, W], some hundred.
    """
    z = vae.encode(images).latents.float()
    vae.register_to_config(shift_factor=float(z.mean()), scaling_factor=1 / max(float(z.std()), 1e-6))


def save_vae(vae: "AutoencoderTiny", folder: str | Path) -> None:
    """Write a folder of diffusers, which loads without a warning and has the mode that the umask says.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_vae(build_vae(VAEConfig(channels=4, downscale=4, width=8, depth=1)), folder)
        >>> sorted(file.name for file in Path(folder).iterdir())
        ['config.json', 'diffusion_pytorch_model.safetensors']
    """
    vae.save_pretrained(folder)
    config = Path(folder) / "config.json"
    settings = json.loads(config.read_text())
    settings.pop("block_out_channels", None)  # diffusers writes it, and is surprised when it reads it
    config.write_text(json.dumps(settings, indent=2) + "\n")
    for weights in Path(folder).glob("*.safetensors"):  # safetensors lets nobody else read
        shutil.copymode(config, weights)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
