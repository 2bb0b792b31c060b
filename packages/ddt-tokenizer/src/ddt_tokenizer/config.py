"""TokenizerConfig: what a tokenizer is made of, and the sizes that the papers and this project use."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from ddt_tokenizer.encoder import EncoderConfig
from ddt_tokenizer.identity import identity
from ddt_tokenizer.latents import LatentConfig
from ddt_tokenizer.limits import Pixels, check_settings
from ddt_tokenizer.quantizers.kinds import AnyQuantizer
from ddt_tokenizer.quantizers.vector import VectorConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything that a checkpoint needs to be rebuilt."""

    image_size: Pixels = 64  # pixels, of the square that pictures are made; tensors may have other sizes
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: AnyQuantizer = field(default_factory=VectorConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)

    def __post_init__(self):
        check_settings(self)
        if self.encoder.channels != self.latents.channels:
            raise ValueError(
                f"encoder.channels ({self.encoder.channels}) must equal latents.channels ({self.latents.channels})"
            )
        if self.image_size % self.multiple:
            raise ValueError(
                f"image_size ({self.image_size}) must be divisible by patch_size ({self.encoder.patch_size})"
                + (f" times latents.downscale ({self.latents.downscale})" if self.latents.downscale > 1 else "")
            )
        if self.encoder.local and (self.encoder.start != "haar" or self.encoder.causal):
            raise ValueError(
                f"encoder.local ({self.encoder.local}) needs start=haar, not {self.encoder.start}, and causal=false, "
                f"as a local query sees no coarser one"
            )
        self.encoder.check_patches(*self.patch_grid, f"image_size ({self.image_size})")

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        return (self.image_size // self.multiple,) * 2

    @property
    def multiple(self) -> int:
        """Return what height and width of images must be divisible by, in pixels."""
        return self.encoder.patch_size * self.latents.downscale

    def identity(self) -> dict[str, Any]:
        """Return the settings that a fingerprint covers; where the VAE lies is not one."""
        covered = {
            "image_size": self.image_size,
            "encoder": self._encoder_identity(),
            "quantizer": self.quantizer.identity(),
            "latents": identity(replace(self.latents, vae=None)),
        }
        return {name: value for name, value in covered.items() if value != {}}  # pixels need no word

    def _encoder_identity(self) -> dict[str, Any]:
        """Name a start at places as 0.1.0 did, whose fingerprints then stay."""
        covered = self.encoder.identity()
        if self.encoder.start == "grid":
            covered["start_grid"] = self.patch_grid[0]
            del covered["start"]
        return covered

    @classmethod
    def tiny(cls) -> Self:
        """Return the tokenizer of the demo: 32 px, 16 ids of 512.

        Example:
            >>> TokenizerConfig.tiny().encoder.num_tokens
            16
        """
        return cls(image_size=32, encoder=EncoderConfig(num_tokens=16), quantizer=VectorConfig(code_width=16))

    @classmethod
    def small(cls, vae: str | None = None) -> Self:
        """Return the tokenizer for 64 px on a desktop machine: 64 ids of 16,384, from coarse to fine.

        It works on latents, 16 x 16 x 8; `vae` is the folder of an autoencoder of `ddt_tokenizer.vae_training`, None if
        only latents will be encoded. Why so: this project's docs/results/order.md.

        Example:
            >>> TokenizerConfig.small().patch_grid
            (8, 8)
        """
        return cls(
            encoder=EncoderConfig(channels=8, patch_size=2, start="haar"),
            quantizer=VectorConfig(codebook_size=16_384, dead_share=0.05, rate=0.001),
            latents=LatentConfig(channels=8, downscale=4, vae=vae),
        )

    @classmethod
    def ddt_480(cls, vae: str | None = None) -> Self:
        """Return the tokenizer of DDT-LLaMA (arXiv:2504.14666): 256 px, 480 ids of 65,536; `vae` as in `selftok_512`.

        The paper gives K, codebook, query width and the joint attention of two streams. Depth and heads are those of
        `Enc-Qformer-Bi-UWL/2` in the authors' later code; the VAE is taken to be that of SD3.
        """
        selftok = cls.selftok_512(vae)
        encoder = replace(
            selftok.encoder,
            width=256,
            depth=24,
            num_tokens=480,
            attention="joint",
            image_width=None,
            image_heads=None,
            query_position="sincos",
        )
        quantizer = replace(selftok.quantizer, codebook_size=65_536, diversity=0.0, replacement="random")
        return replace(selftok, encoder=encoder, quantizer=quantizer)

    @classmethod
    def selftok_512(cls, vae: str | None = None) -> Self:
        """Return Selftok's released tokenizer (arXiv:2505.07538; `Enc-Qformer-Uni-XL/2`): 256 px, 512 ids of 32,768.

        `vae` is where the VAE of SD3 lies; None if only latents will be encoded.
        """
        encoder = EncoderConfig(
            channels=16,
            patch_size=2,
            width=512,
            depth=16,
            num_heads=8,
            num_tokens=512,
            attention="one_way",
            image_width=64,
            image_heads=4,
            query_position="adaln",
            position_table=64,
            qk_norm=False,
            affine_norms=False,
            final_norm=False,
        )
        quantizer = VectorConfig(
            codebook_size=32_768, code_width=16, diversity=1.0, replacement="position", revived_share=0.2
        )
        return cls(image_size=256, encoder=encoder, quantizer=quantizer, latents=LatentConfig.sd3(vae))

    @classmethod
    def selftok_1024(cls, vae: str | None = None) -> Self:
        """Return Selftok's tokenizer with 1,024 ids; no configuration of it is public, so all else is as for 512."""
        released = cls.selftok_512(vae)
        return replace(released, encoder=replace(released.encoder, num_tokens=1024))
