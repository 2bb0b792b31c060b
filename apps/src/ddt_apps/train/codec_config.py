"""CodecConfig: the sizes of a tokenizer and of its decoder, each said once."""

from dataclasses import asdict, dataclass, field, replace
from typing import Self

from ddt_apps.run.config import follows
from ddt_decoder import DecoderConfig, FlowConfig, MMDiTConfig
from ddt_tokenizer import EncoderConfig, LatentConfig, QuantizerConfig, TokenizerConfig

PRESETS = ("tiny", "small", "ddt-480", "selftok-512", "selftok-1024")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A tokenizer and a decoder that belong together.

    K is the sum of `schedule`, V and D are the quantizer's, the channels are those of `latents`. Encoder and network
    follow: what they say of these sizes themselves does not count.

    Example:
        >>> config = CodecConfig(schedule=(12, 4), quantizer=QuantizerConfig(codebook_size=1024))
        >>> config.tokenizer.encoder.num_tokens, config.decoder.codebook_size
        (16, 1024)
    """

    image_size: int = 64  # pixels, of the square that pictures are made
    schedule: tuple[int, ...] = (64,)  # tokens revealed in each equal piece of time, from clean to noise; K in all
    latents: LatentConfig = field(default_factory=LatentConfig)  # what both work on
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    encoder: EncoderConfig = follows(EncoderConfig, num_tokens="schedule", channels="latents.channels")
    network: MMDiTConfig = follows(MMDiTConfig, token_width="quantizer.code_width", channels="latents.channels")
    flow: FlowConfig = field(default_factory=FlowConfig)
    logit_normal_schedule: tuple[float, float] | None = None  # mean, std of logit t; then schedule is (K,)

    def __post_init__(self):
        channels = self.latents.channels
        encoder = replace(self.encoder, num_tokens=sum(self.schedule), channels=channels)
        network = replace(self.network, token_width=self.quantizer.code_width, channels=channels)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "network", network)
        _ = self.tokenizer, self.decoder  # which refuse what does not fit

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The tokenizer's half."""
        return TokenizerConfig(self.image_size, self.encoder, self.quantizer, self.latents)

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's half."""
        return DecoderConfig(
            image_size=self.image_size,
            codebook_size=self.quantizer.codebook_size,
            schedule=self.schedule,
            network=self.network,
            flow=self.flow,
            latents=type(DecoderConfig().latents)(**asdict(self.latents)),
            logit_normal_schedule=self.logit_normal_schedule,
        )

    @classmethod
    def of(cls, tokenizer: TokenizerConfig, decoder: DecoderConfig) -> Self:
        """Join two halves, of which the tokenizer's says the sizes.

        Example:
            >>> CodecConfig.of(TokenizerConfig.tiny(), DecoderConfig.tiny()).decoder == DecoderConfig.tiny()
            True
        """
        return cls(
            image_size=tokenizer.image_size,
            schedule=decoder.schedule,
            latents=tokenizer.latents,
            quantizer=tokenizer.quantizer,
            encoder=tokenizer.encoder,
            network=decoder.network,
            flow=decoder.flow,
            logit_normal_schedule=decoder.logit_normal_schedule,
        )

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """Join the presets of that name of both packages.

        Raises:
            ValueError: If there is none.

        Example:
            >>> CodecConfig.from_preset("selftok-512").quantizer.codebook_size
            32768
        """
        if name not in PRESETS:
            raise ValueError(f"preset ({name!r}) must be one of {', '.join(PRESETS)}")
        half = name.replace("-", "_")
        return cls.of(getattr(TokenizerConfig, half)(), getattr(DecoderConfig, half)())
