"""DecoderConfig: everything that a checkpoint needs to be rebuilt, and the published shapes as presets."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from ddt_decoder.flow import FlowConfig
from ddt_decoder.latents import LatentConfig
from ddt_decoder.limits import (
    FiniteFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Tokens,
    check_setting,
    check_settings,
)
from ddt_decoder.mmdit import MMDiTConfig
from ddt_decoder.schedule import LogitNormalSchedule, TokenSchedule


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape, schedule and flow of a decoder.

    Example:
        >>> DecoderConfig.selftok_512().network.width
        1536
    """

    image_size: Pixels = 64  # pixels, square; other sizes are drawn on request
    codebook_size: PositiveInt = 512
    schedule: tuple[NonNegativeInt, ...] = (64,)  # tokens revealed in each equal piece of time; they sum to K
    network: MMDiTConfig = field(default_factory=MMDiTConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    # Mean, std of logit t; then schedule is (K,).
    logit_normal_schedule: tuple[FiniteFloat, PositiveFloat] | None = None
    # Denoising steps of a drawing that asks for no number; None: 1 if training had a share of pure noise, else 25.
    num_steps: PositiveInt | None = None

    def __post_init__(self):
        check_settings(self)
        check_setting("schedule in all", Tokens, sum(self.schedule))
        if self.latents.channels != self.network.channels:
            raise ValueError(
                f"network.channels ({self.network.channels}) must equal latents.channels ({self.latents.channels})"
            )
        if self.image_size % self.patch_pixels:
            raise ValueError(
                f"image_size ({self.image_size}) must be divisible by patch_size ({self.network.patch_size}) times "
                f"latents.downscale ({self.latents.downscale})"
            )
        side = self.network.table_side
        if side is not None and self.patch_grid[0] > side:
            raise ValueError(
                f"image_size ({self.image_size}) needs more patches than table_side ({side}); raise table_side"
            )
        if self.logit_normal_schedule is not None and len(self.schedule) != 1:
            raise ValueError(f"schedule ({self.schedule}) must be one number, K, with a logit_normal_schedule")

    @property
    def patch_pixels(self) -> int:
        """Pixels to a side of one patch; heights and widths are multiples of it."""
        return self.network.patch_size * self.latents.downscale

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        return (self.image_size // self.patch_pixels,) * 2

    @property
    def usual_steps(self) -> int:
        """Denoising steps of a drawing that asks for no number; see `num_steps`."""
        if self.num_steps is not None:
            return self.num_steps
        return 1 if self.flow.full_noise_share else 25

    def token_schedule(self) -> TokenSchedule:
        """Build k(t)."""
        if self.logit_normal_schedule is None:
            return TokenSchedule(self.schedule)
        return LogitNormalSchedule(self.schedule[0], *self.logit_normal_schedule)

    def with_vae(self, vae: str | None) -> Self:
        """Return this config with the VAE in another place; None leaves it where it is."""
        return self if vae is None else replace(self, latents=replace(self.latents, vae=vae))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Undo `dataclasses.asdict`, and JSON's lists for tuples."""

        def tupled(part: dict[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}

        values = tupled(values)
        network = dict(values.get("network", {}))
        if network.pop("token_grid", None) is not None:  # what 0.1.0 called a start at places
            network["start"] = "grid"
        values["network"] = network
        for name, kind in (("network", MMDiTConfig), ("flow", FlowConfig), ("latents", LatentConfig)):
            if name in values:
                values[name] = kind(**tupled(values[name]))
        return cls(**values)

    @classmethod
    def tiny(cls) -> Self:
        """Return the demo's: 32 px, 16 tokens, minutes on two cores."""
        return cls(
            image_size=32,
            codebook_size=512,
            schedule=(16,),
            network=MMDiTConfig(patch_size=8, width=160, depth=4, num_heads=5, token_width=16),
            flow=FlowConfig(time_shift=2.0, full_noise_share=0.85, coarse_share=0.15, token_dropout=0.02),
        )

    @classmethod
    def small(cls, vae: str | None = None) -> Self:
        """Return 64 px, 64 tokens of 16,384 x 12 from coarse to fine, on latents of a small autoencoder, `vae`.

        Three tenths of a batch are drawn from prefixes, a third in one step from all tokens, the rest are a real flow,
        half of which sees k(t) tokens and half all.

        Example:
            >>> DecoderConfig.small().usual_steps
            1
        """
        return cls(
            image_size=64,
            codebook_size=16_384,
            schedule=(28, 24, 8, 3, 1),
            network=MMDiTConfig(
                channels=8, patch_size=2, width=192, depth=4, num_heads=6, token_width=12, start="haar"
            ),
            flow=FlowConfig(prefix_share=0.3, full_noise_share=0.45, all_share=0.5, time_power=1.0, token_dropout=0.05),
            latents=LatentConfig(channels=8, downscale=4, vae=vae),
        )

    @classmethod
    def ddt_480(cls, vae: str | None = None) -> Self:
        """Return DDT at 256 px (arXiv:2504.14666): 480 tokens of 65,536 x 16, uniform schedule, x0 loss.

        Where the paper is silent: SD3's network and latents, tokens modulated by time, logit-normal t.
        """
        return cls(
            image_size=256,
            codebook_size=65_536,
            schedule=(480,),
            network=MMDiTConfig(
                channels=16,
                patch_size=2,
                width=1536,
                depth=24,
                num_heads=24,
                token_width=16,
                qk_norm=False,
                open_gates=False,
                table_side=192,
            ),
            flow=FlowConfig(prediction="x0", network_output="velocity", logit_normal=(0.0, 1.0)),
            latents=LatentConfig.sd3(vae),
        )

    @classmethod
    def selftok_512(cls, vae: str | None = None) -> Self:
        """Return Selftok at 256 px with 512 tokens of 32,768 x 16, as released (arXiv:2505.07538)."""
        like = cls.ddt_480(vae)  # SD3 too
        return replace(
            like,
            codebook_size=32_768,
            schedule=(192, 184, 72, 48, 16),
            network=replace(like.network, token_modulation="position"),
            flow=FlowConfig(prediction="velocity", network_output="velocity"),
        )

    @classmethod
    def selftok_1024(cls, vae: str | None = None) -> Self:
        """Return Selftok with 1024 tokens. Its schedule was never published: this is that of 512 times two."""
        return replace(cls.selftok_512(vae), schedule=(384, 368, 144, 96, 32))
