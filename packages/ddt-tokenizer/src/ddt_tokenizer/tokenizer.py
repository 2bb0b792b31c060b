"""DDTTokenizer: images to ids. Encoder, then quantizer.

Shape letters: B batch, K tokens, D code width, C channels.
"""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ddt_tokenizer.checkpoint import load_model, read_config, save_folder
from ddt_tokenizer.config import TokenizerConfig
from ddt_tokenizer.encoder import Encoder, EncoderConfig
from ddt_tokenizer.hub import OnHub, local_folder, model_card
from ddt_tokenizer.images import as_images
from ddt_tokenizer.latents import LatentConfig, LatentSpace
from ddt_tokenizer.limits import check_setting
from ddt_tokenizer.precision import Precision, computing, recorded
from ddt_tokenizer.quantizers.kinds import read_settings
from ddt_tokenizer.quantizers.quantizer import Quantized, Quantizer
from ddt_tokenizer.selftok import read_selftok
from ddt_tokenizer.shipped import folder_of
from ddt_tokenizer.weights_file import whole

KIND = "ddt-tokenizer"


class DDTTokenizer(nn.Module, OnHub):
    """Images to discrete diffusion timestep tokens.

    Attributes:
        precision: In which `encode` computes. In "bf16" the encoder's products are; vectors and the search for their
            codes stay float32. Up to 1 % of the ids are then others, so `identity` says so; the fingerprint does not.

    Example:
        >>> tokenizer = DDTTokenizer(TokenizerConfig.tiny()).eval()
        >>> tokenizer.encode(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    precision: Precision = "32"

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.patch_grid)
        self.quantizer: Quantizer = config.quantizer.build(config.encoder.width, config.encoder.num_tokens)
        self.latent_space = LatentSpace(config.latents)

    @property
    def num_tokens(self) -> int:
        """Return K, the tokens of one image."""
        return self.config.encoder.num_tokens

    @property
    def codebook_size(self) -> int:
        """Return V, the number of ids."""
        return self.config.quantizer.codebook_size

    @property
    def identity(self) -> dict[str, Any]:
        """What id shards record of the tokenizer that wrote them, and of the precision if it was not fp32."""
        sizes = {"codebook_size": self.codebook_size, "num_tokens": self.num_tokens}
        return {"fingerprint": self.fingerprint(), **sizes, **recorded(self.precision)}

    def forward(self, latents: Tensor) -> Quantized:
        """Encode and quantize latents [B, C, h, w] with gradients; in training mode this updates the codebook."""
        return self.quantizer(self.encoder(latents))

    def encode(self, images: Any) -> Tensor:
        """Write images as ids.

        Args:
            images: Float32 [B, 3, H, W] in [-1, 1], H and W divisible by patch_size times the downscale of the latents;
                or a PIL image, a path, or a list of them (resized and centre-cropped to image_size).

        Returns:
            Ids int64 [B, K] in 0..V-1. Index 0 is visible at the least noise, index K-1 only near pure noise.

        Raises:
            ValueError: If a tensor has the wrong shape, a picture cannot be read, or the VAE is missing; names it.
        """
        images = as_images(images, self.config.image_size, self.config.multiple)
        return self.encode_latents(self.latent_space.encode(images.to(self.encoder.patch_in.weight.device)))

    @torch.no_grad()
    def encode_latents(self, latents: Tensor) -> Tensor:
        """Write latents [B, C, h, w] as ids [B, K]; no VAE is involved.

        Raises:
            ValueError: If they have other channels, or patches do not fit.
        """
        with computing(self.precision, latents.device):
            vectors = self.encoder(latents)
        return self.quantizer.lookup(self.quantizer.to_code_space(vectors))

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Turn ids [B, K] into the token vectors that the decoder reads, float32 [B, K, D]."""
        return self.quantizer.embed(ids)

    def fingerprint(self) -> str:
        """Hash what decides an image's ids, sizes and weights: 16 hex digits, equal for equal tokenizers only."""
        digest = hashlib.sha256(json.dumps(self.config.identity(), sort_keys=True).encode())
        memories = {f"quantizer.{name}" for name in self.quantizer.memories}
        for name, tensor in sorted(self.state_dict().items()):
            if name not in memories:
                digest.update(name.encode() + whole(tensor).detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, which is made if need be."""
        save_folder(folder, self, KIND, {"fingerprint": self.fingerprint(), **asdict(self.config)})

    @property
    def bits(self) -> float:
        """Return how many bits an image is written in: K log2 V.

        Example:
            >>> DDTTokenizer(TokenizerConfig.tiny()).bits
            144.0
        """
        return self.num_tokens * math.log2(self.codebook_size)

    def card(self, repo_id: str, licence: str | None = None) -> str:
        """Return its model card; see `ddt_tokenizer.hub.model_card`."""
        size = self.config.image_size
        facts = {
            "images": f"{size} x {size} pixels",
            "written as": f"{self.num_tokens} ids of {self.codebook_size:,}: {self.bits:,.0f} bits an image",
            "weights": f"{sum(weight.numel() for weight in self.parameters()):,}",
            "fingerprint": self.fingerprint(),
        }
        what = (
            "Images to discrete diffusion timestep tokens (arXiv:2504.14666): index 0 is the finest id, the last the "
            "coarsest. The fingerprint belongs to these ids: a decoder and a language model name the one they were "
            "trained with."
        )
        usage = f"""from ddt_tokenizer import DDTTokenizer

tokenizer = DDTTokenizer.from_pretrained("{repo_id}")
ids = tokenizer.encode("fox.png")  # int64 [1, {self.num_tokens}]"""
        return model_card(repo_id.rpartition("/")[2], what, usage, facts, licence, ["ddt", "image-tokenizer"])

    @classmethod
    def from_pretrained(cls, folder: str | Path, vae: str | None = None, precision: Precision = "32") -> Self:
        """Load a folder written by `save_pretrained`, strictly, with weights in fp32 and in evaluation mode.

        Args:
            folder: Of the tokenizer, an id of the Hub (`owner/name/tokenizer`), or one that comes along, by name.
            vae: Where the VAE lies on this machine, if not where it did when the folder was written.
            precision: In which `encode` computes: "32", or "bf16".

        Raises:
            FileNotFoundError: If the folder holds no tokenizer.
            ValueError: If it was written in another format, its weights are not those it was saved with, or there is
                no such precision.
        """
        check_setting("precision", Precision, precision)
        folder = local_folder(folder_of(folder, "tokenizer"))
        config = read_config(folder, KIND)
        try:
            fingerprint = config.pop("fingerprint")
            encoder = config.get("encoder", {})
            if encoder.pop("start_grid", None) is not None:  # what 0.1.0 called a start at places
                encoder["start"] = "grid"
            parts = {"encoder": EncoderConfig, "quantizer": read_settings, "latents": LatentConfig}
            parts = {name: part(**config.pop(name, {})) for name, part in parts.items()}
            if vae is not None:
                parts["latents"] = replace(parts["latents"], vae=vae)
            config = TokenizerConfig(**config, **parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"config.json in '{folder}' is damaged ({error}); save the tokenizer again") from error
        tokenizer = load_model(folder, lambda: cls(config))
        if tokenizer.fingerprint() != fingerprint:
            raise ValueError(f"weights in '{folder}' are not those that its config.json names ({fingerprint})")
        tokenizer.precision = precision
        return tokenizer.eval()

    @classmethod
    def from_selftok(cls, path: str | Path, **settings: Any) -> Self:
        """Load the encoder and codebook of a public Selftok checkpoint (`tokenizer_512.pth`).

        Settings and errors are those of `ddt_tokenizer.selftok.read_selftok`.
        """
        checkpoint = read_selftok(path, **settings)
        return checkpoint.fill(cls(checkpoint.config))
