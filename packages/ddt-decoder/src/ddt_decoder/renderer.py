"""DDTRenderer: ids to images in one step (arXiv:2505.07538, appendix B.2).

Shape letters: B batch, K tokens, D token width, W network width, L patches.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ddt_decoder.config import DecoderConfig
from ddt_decoder.decoder import DDTDecoder
from ddt_decoder.limits import PositiveInt
from ddt_decoder.mmdit import MMDiT
from ddt_decoder.patches import from_patches
from ddt_decoder.precision import computing
from ddt_decoder.selftok import filled, read_selftok
from ddt_decoder.token_table import TokenTable


class DDTRenderer(TokenTable):
    """The network of a decoder at t=1, which sees all tokens and draws on a canvas of learned embeddings, not on noise.

    Its output is the clean latent, so one call is the whole decode, and the same ids always give the same image. The
    canvas has 1 vector, W wide, spread over all patches, or L (`canvas_size`), one for each patch. With `prefixes` it
    was also taught to draw from the n coarsest tokens.

    Example:
        >>> from ddt_decoder import MMDiTConfig
        >>> network = MMDiTConfig(width=32, depth=1, num_heads=2)
        >>> decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network))
        >>> DDTRenderer.from_decoder(decoder).decode(torch.zeros(2, 4, dtype=torch.long)).shape
        torch.Size([2, 3, 16, 16])
    """

    kind = "renderer"
    arguments: ClassVar = {"canvas_size": PositiveInt, "prefixes": bool}

    def __init__(self, config: DecoderConfig, canvas_size: int = 1, prefixes: bool = False):
        super().__init__(config)
        self.canvas_size, self.prefixes = canvas_size, prefixes
        width = config.network.width
        # Canvas and places stand in for x_t.
        self.network = MMDiT(config.network, self.num_tokens, config.patch_grid, embeds_patches=False)
        self.canvas = nn.Parameter(width**-0.5 * torch.randn(canvas_size, width))
        self.places = nn.Parameter(width**-0.5 * torch.randn(math.prod(config.patch_grid), width))

    def forward(self, ids: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Estimate the clean latents [B, C, h, w] of ids [B, K], or of token vectors [B, K, D]; gradients pass.

        With `keep_tokens` of the n coarsest, 0..K; no other is computed.

        Raises:
            ValueError: If the shape, an id or the number of tokens does not fit this renderer.
        """
        first = 0 if keep_tokens is None else self.num_tokens - keep_tokens
        if not 0 <= first <= self.num_tokens:
            raise ValueError(f"keep_tokens ({keep_tokens}) must be 0 to {self.num_tokens}")
        tokens = self.as_tokens(ids)[:, first:]
        patches = (self.canvas + self.places).expand(tokens.shape[0], -1, -1)
        output = self.network.transform(patches, tokens.new_ones(tokens.shape[0]), tokens, first=first)
        return from_patches(output.float(), self.config.patch_grid, self.config.network.patch_size)

    def render(self, ids: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Draw images [B, 3, H, W] with gradients, for training; not clamped to [-1, 1]."""
        return self.latent_space.decode(self(ids, keep_tokens))

    @torch.inference_mode()
    def decode(self, ids: Tensor, keep_tokens: int | None = None) -> Tensor:
        """Draw images float32 [B, 3, H, W] in [-1, 1] from ids [B, K], or from token vectors [B, K, D].

        Args:
            keep_tokens: Use only the n coarsest tokens, 0..K; what was not trained with `prefixes` draws badly then.

        Raises:
            ValueError: If the shape, an id or the number of tokens does not fit this renderer.
        """
        with computing(self.precision, self.codebook.device):
            latents = self(ids, keep_tokens)
        return self.latent_space.decode(latents).clamp(-1, 1).float()

    @classmethod
    def from_decoder(cls, decoder: DDTDecoder, prefixes: bool = False) -> Self:
        """Start from a decoder: the renderer's first image is the decoder's estimate in one step from zero noise.

        Selftok starts canvas and places at random instead.
        """
        renderer = cls(decoder.config, prefixes=prefixes)
        weights = decoder.network.state_dict()
        renderer.network.load_state_dict({name: weights[name] for name in renderer.network.state_dict()})
        with torch.no_grad():
            renderer.canvas.copy_(weights["patch_in.bias"])
            renderer.places.copy_(decoder.network.grid(*decoder.config.patch_grid))
            if decoder.config.flow.network_output == "velocity":  # at zero noise x0 = -v
                renderer.network.patch_out.weight.neg_()
                renderer.network.patch_out.bias.neg_()
        renderer.set_codebook(decoder.codebook, decoder.tokenizer_fingerprint)
        return renderer.to(decoder.codebook.device)

    @classmethod
    def from_selftok(cls, path: str | Path, **config: Any) -> Self:
        """Read a published Selftok renderer (`renderer_512_ckpt.pth`); arguments as for `DDTDecoder.from_selftok`."""
        read, weights = read_selftok(path, **config)
        if "canvas" not in weights:
            raise ValueError(f"'{path}' holds a decoder, not a renderer; use DDTDecoder.from_selftok")
        return filled(cls(read, len(weights["canvas"])), weights, path)
