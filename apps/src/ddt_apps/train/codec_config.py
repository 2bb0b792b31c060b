"""CodecConfig: the sizes of a tokenizer and of its decoder, each said once."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from ddt_apps.run.config import follows
from ddt_decoder import DecoderConfig, FlowConfig, MMDiTConfig
from ddt_tokenizer import EncoderConfig, LatentConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.limits import FiniteFloat, NonNegativeInt, Pixels, PositiveFloat, PositiveInt, check_settings
from ddt_tokenizer.quantizers.kinds import AnyQuantizer
from ddt_tokenizer.scales import Start

OWN = ("schedule", "network", "flow", "logit_normal_schedule", "num_steps")  # what is the decoder's alone
PRESETS = ("tiny", "small", "ddt-480", "selftok-512", "selftok-1024")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A tokenizer and a decoder that belong together.

    K is the sum of `schedule`, V and D are the quantizer's, the channels are those of `latents`, the start is that of
    both. Encoder and network follow: what they say of these sizes themselves does not count.

    Example:
        >>> config = CodecConfig(schedule=(12, 4), quantizer=VectorConfig(codebook_size=1024))
        >>> config.tokenizer.encoder.num_tokens, config.decoder.codebook_size
        (16, 1024)
    """

    image_size: Pixels = 64  # pixels, of the square that pictures are made
    # Tokens revealed in each equal piece of time, from clean to noise; K in all.
    schedule: tuple[NonNegativeInt, ...] = (64,)
    latents: LatentConfig = field(default_factory=LatentConfig)  # what both work on
    quantizer: AnyQuantizer = field(default_factory=VectorConfig)  # V and D
    # Where queries and tokens begin: haar, at scales from the whole to details; grid, at places; null, anywhere.
    start: Start | None = None
    # What writes ids; K, channels and start follow.
    encoder: EncoderConfig = follows(EncoderConfig, num_tokens="schedule", channels="latents.channels", start="start")
    # What draws them; D, channels and start follow.
    network: MMDiTConfig = follows(
        MMDiTConfig, token_width="quantizer.code_width", channels="latents.channels", start="start"
    )
    flow: FlowConfig = field(default_factory=FlowConfig)  # noise, and what is visible, in training
    # Mean, std of logit t; then schedule is (K,).
    logit_normal_schedule: tuple[FiniteFloat, PositiveFloat] | None = None
    # Denoising steps of a drawing that asks for no number; null: 1 if training has a share of pure noise, else 25.
    num_steps: PositiveInt | None = None

    def __post_init__(self):
        check_settings(self)
        channels = self.latents.channels
        width = self.quantizer.code_width
        network = replace(self.network, token_width=width, channels=channels, start=self.start)
        object.__setattr__(self, "network", network)
        _ = self.decoder  # which refuses what does not fit, and so does the tokenizer
        encoder = replace(self.encoder, num_tokens=sum(self.schedule), channels=channels, start=self.start)
        object.__setattr__(self, "encoder", encoder)
        _ = self.tokenizer

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The tokenizer's half."""
        return TokenizerConfig(
            image_size=self.image_size, encoder=self.encoder, quantizer=self.quantizer, latents=self.latents
        )

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's half."""
        latents = type(DecoderConfig().latents)(**asdict(self.latents))
        own = {name: getattr(self, name) for name in OWN}
        return DecoderConfig(
            image_size=self.image_size, codebook_size=self.quantizer.codebook_size, latents=latents, **own
        )

    @classmethod
    def of(cls, tokenizer: TokenizerConfig, decoder: DecoderConfig) -> Self:
        """Join two halves, of which the tokenizer's says the sizes.

        Example:
            >>> CodecConfig.of(TokenizerConfig.tiny(), DecoderConfig.tiny()).decoder == DecoderConfig.tiny()
            True
        """
        own = {name: getattr(decoder, name) for name in OWN}
        halves = {name: getattr(tokenizer, name) for name in ("image_size", "latents", "quantizer", "encoder")}
        return cls(start=tokenizer.encoder.start, **halves, **own)

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

    @classmethod
    def upgraded(cls, tokenizer: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
        """Join the groups `tokenizer` and `decoder` of a config.yaml of ddt-apps 0.1.0."""
        values = {**tokenizer, **{name: decoder[name] for name in OWN if name in decoder}}
        values = cls.with_start(values)
        for field_ in fields(cls):
            for following in field_.metadata.get("follows", ()):
                values[field_.name] = {name: v for name, v in values[field_.name].items() if name != following}
        return values

    @staticmethod
    def with_start(values: dict[str, Any]) -> dict[str, Any]:
        """Name the start of a codec once, which older settings told as `start_grid` and `token_grid`."""
        if "start_grid" not in values.get("encoder", {}):
            return values
        encoder, network = dict(values["encoder"]), dict(values["network"])
        start = None if encoder.pop("start_grid") is None else "grid"
        network.pop("token_grid", None)
        return {**values, "start": start, "encoder": encoder, "network": network}
