"""The tokenizer for engines without torch: images to ids as an ONNX file.

Shape letters: B batch, K tokens.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddt_tokenizer.onnx_file import write_onnx
from ddt_tokenizer.tokenizer import DDTTokenizer


class ImagesToIds(nn.Module):
    """`DDTTokenizer.encode` of square images as a module that can be exported.

    Example:
        >>> from ddt_tokenizer import TokenizerConfig
        >>> tokenizer = DDTTokenizer(TokenizerConfig.tiny()).eval()
        >>> images = torch.rand(3, 3, 32, 32) * 2 - 1
        >>> torch.equal(ImagesToIds(tokenizer)(images), tokenizer.encode(images))
        True
    """

    def __init__(self, tokenizer: DDTTokenizer):
        super().__init__()
        self.encoder, self.quantizer = tokenizer.encoder, tokenizer.quantizer
        self.latent_space = tokenizer.latent_space
        self.vae = self.latent_space.load()  # whose weights belong to the graph

    def forward(self, images: Tensor) -> Tensor:
        """Write float32 images [B, 3, H, W] in [-1, 1] as ids int64 [B, K]."""
        return self.quantizer.lookup(self.quantizer.to_code_space(self.encoder(self.latent_space.encode(images))))


def export_onnx(tokenizer: DDTTokenizer, file: str | Path) -> None:
    """Write `images` float32 [B, 3, S, S] in [-1, 1] -> `ids` int64 [B, K], S being the image size and B any number.

    A VAE is part of the file. Ids are those of `encode` but for what is as near to two codes, to rounding.

    Raises:
        ValueError: If the extra `onnx`, or the VAE of the latents, is missing.
    """
    size = tokenizer.config.image_size
    about = {name: str(value) for name, value in tokenizer.identity.items()}
    write_onnx(ImagesToIds(tokenizer), {"images": torch.zeros(2, 3, size, size)}, "ids", file, about)
