"""DDTRenderer: ids to images in one step (arXiv:2505.07538, appendix B.2).

Shape letters: B batch, K tokens, D token width, W network width, L patches.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ddt_decoder.checkpoint import load_weights, read_config, save_folder
from ddt_decoder.config import DecoderConfig
from ddt_decoder.decoder import DDTDecoder
from ddt_decoder.latents import LatentSpace
from ddt_decoder.mmdit import MMDiT
from ddt_decoder.patches import from_patches
from ddt_decoder.selftok import read_selftok
from ddt_decoder.token_table import TokenTable


class DDTRenderer(TokenTable):
    """The network of a decoder at t=1, which sees all tokens and draws on a canvas of learned embeddings, not on noise.

    Its output is the clean latent, so one call is the whole decode, and the same ids always give the same image.

    Args:
        config: Of the decoder that it starts from.
        canvas_size: Vectors of the canvas, W wide: 1, spread over all patches, or L, one for each patch.

    Example:
        >>> from ddt_decoder import MMDiTConfig
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network))
        >>> DDTRenderer.from_decoder(decoder).decode(torch.zeros(2, 4, dtype=torch.long)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, config: DecoderConfig, canvas_size: int = 1):
        num_tokens, network = sum(config.schedule), config.network
        super().__init__(num_tokens, config.codebook_size, network.token_width)
        self.config = config
        self.latent_space = LatentSpace(config.latents)
        self.network = MMDiT(network, num_tokens, embeds_patches=False)  # canvas and places stand in for x_t
        side = config.image_size // config.patch_pixels
        self.canvas = nn.Parameter(network.width**-0.5 * torch.randn(canvas_size, network.width))
        self.places = nn.Parameter(network.width**-0.5 * torch.randn(side**2, network.width))

    def forward(self, ids: Tensor) -> Tensor:
        """Estimate the clean latents [B, C, h, w] of ids [B, K], or of token vectors [B, K, D]; gradients pass.

        Raises:
            ValueError: If the shape or an id does not fit this renderer.
        """
        tokens = self.as_tokens(ids)
        patches = (self.canvas + self.places).expand(len(tokens), -1, -1)
        output = self.network.transform(patches, tokens.new_ones(len(tokens)), tokens)
        side = self.config.image_size // self.config.patch_pixels
        return from_patches(output.float(), (side, side), self.config.network.patch_size)

    def render(self, ids: Tensor) -> Tensor:
        """Draw images [B, 3, H, W] with gradients, for training; not clamped to [-1, 1]."""
        return self.latent_space.decode(self(ids))

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        """Draw images float32 [B, 3, H, W] in [-1, 1] from ids [B, K], or from token vectors [B, K, D].

        Raises:
            ValueError: If the shape or an id does not fit this renderer.
        """
        return self.render(ids).clamp(-1, 1).float()

    @classmethod
    def from_decoder(cls, decoder: DDTDecoder) -> Self:
        """Start from a decoder: the renderer's first image is the decoder's estimate in one step from zero noise.

        Selftok starts canvas and places at random instead.
        """
        renderer = cls(decoder.config)
        weights = decoder.network.state_dict()
        canvas = weights.pop("patch_in.bias")[None]
        del weights["patch_in.weight"]
        weights.pop("patch_table", None)
        renderer.network.load_state_dict(weights)
        side = decoder.config.image_size // decoder.config.patch_pixels
        with torch.no_grad():
            renderer.canvas.copy_(canvas)
            renderer.places.copy_(decoder.network.grid(side, side))
            if decoder.config.flow.network_output == "velocity":  # at zero noise x0 = -v
                renderer.network.patch_out.weight.neg_()
                renderer.network.patch_out.bias.neg_()
        renderer.set_codebook(decoder.codebook, decoder.tokenizer_fingerprint)
        return renderer.to(decoder.codebook.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, then `config.json`: a folder without a config is unfinished."""
        extra = {"tokenizer_fingerprint": self.tokenizer_fingerprint, "canvas_size": len(self.canvas)}
        save_folder(folder, self, "ddt-renderer", {**extra, **asdict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path, vae: str | None = None) -> Self:
        """Load a folder written by `save_pretrained`, strictly, in fp32 and evaluation mode.

        Args:
            folder: What `save_pretrained` wrote.
            vae: Where the VAE lies on this machine, if not where it did when the folder was written.

        Raises:
            FileNotFoundError: If the folder holds no renderer.
            ValueError: If it was written in another format, or is damaged.
        """
        config = read_config(folder, "ddt-renderer")
        try:
            fingerprint, canvas_size = config.pop("tokenizer_fingerprint"), config.pop("canvas_size")
            renderer = cls(DecoderConfig.from_dict(config).with_vae(vae), canvas_size)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the renderer in '{folder}' is damaged or incomplete ({error}); save it again") from error
        load_weights(folder, renderer)
        renderer.tokenizer_fingerprint = fingerprint
        return renderer.eval()

    @classmethod
    def from_selftok(cls, path: str | Path, **config: Any) -> Self:
        """Read a published Selftok renderer (`renderer_512_ckpt.pth`); arguments as for `DDTDecoder.from_selftok`."""
        checkpoint = read_selftok(path, **config)
        if "canvas" not in checkpoint.weights:
            raise ValueError(f"'{path}' holds a decoder, not a renderer; use DDTDecoder.from_selftok")
        return checkpoint.fill(cls(checkpoint.config, len(checkpoint.weights["canvas"])))
