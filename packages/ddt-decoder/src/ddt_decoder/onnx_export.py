"""A decoder or renderer for engines without torch: ids to images in one step, as an ONNX file.

Shape letters: B batch, K tokens, C channels; H, W pixels, h, w latents.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddt_decoder.decoder import DDTDecoder
from ddt_decoder.flow import coarsest
from ddt_decoder.onnx_file import write_onnx
from ddt_decoder.patches import from_patches
from ddt_decoder.renderer import DDTRenderer


class IdsToImages(nn.Module):
    """One step of a decoder, or a renderer, as a module that can be exported: any number of ids is shown by a mask.

    Example:
        >>> from ddt_decoder import DecoderConfig, MMDiTConfig
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network))
        >>> draw = IdsToImages(DDTRenderer.from_decoder(decoder))
        >>> draw(torch.zeros(2, 4, dtype=torch.long), torch.tensor([4, 1])).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, drawer: DDTDecoder | DDTRenderer):
        super().__init__()
        self.drawer = drawer
        self.vae = drawer.latent_space.load()  # whose weights belong to the graph

    def forward(self, ids: Tensor, keep_tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw images float32 [B, 3, H, W] in [-1, 1].

        Args:
            ids: int64 [B, K].
            keep_tokens: int64 [B], how many of the coarsest ids of each image are used, 0..K.
            noise: float32 [B, C, h, w] from N(0, 1); a renderer has none.
        """
        drawer, start = self.drawer, keep_tokens.new_ones(keep_tokens.shape[0], dtype=torch.float32)
        tokens, visible = drawer.embed(ids), coarsest(keep_tokens, drawer.num_tokens)
        if isinstance(drawer, DDTRenderer):
            patches = (drawer.canvas + drawer.places).expand(tokens.shape[0], -1, -1)
            output = drawer.network.transform(patches, start, tokens, visible)
            latents = from_patches(output, drawer.config.patch_grid, drawer.config.network.patch_size)
        else:  # at t=1, where all tokens are visible
            output = drawer.network(noise, start, tokens, visible)
            latents = output if drawer.config.flow.network_output == "x0" else noise - output
        return drawer.latent_space.decode(latents).clamp(-1, 1)


def export_onnx(drawer: DDTDecoder | DDTRenderer, file: str | Path) -> None:
    """Write `ids`, `keep_tokens` and, of a decoder, `noise` -> `images`; see `IdsToImages.forward`, B being any number.

    A VAE is part of the file. Images are those of `decode`, of a decoder with `num_steps=1`, to rounding.

    Raises:
        ValueError: If the extra `onnx`, or the VAE of the latents, is missing.
    """
    config, count = drawer.config, drawer.num_tokens
    example = {"ids": torch.zeros(2, count, dtype=torch.long), "keep_tokens": torch.full((2,), count)}
    if isinstance(drawer, DDTDecoder):
        side = config.image_size // config.latents.downscale
        example["noise"] = torch.zeros(2, config.network.channels, side, side)
    about = {"tokenizer_fingerprint": drawer.tokenizer_fingerprint, "codebook_size": str(config.codebook_size)}
    write_onnx(IdsToImages(drawer), example, "images", file, {**about, "num_tokens": str(count)})
