"""What a model was adapted to, as its config records: which tokens are denoised together, and along which path."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from ddt_llm.corruption import MetricPath
from ddt_llm.limits import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share, check_settings
from ddt_llm.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Path = Literal["mask", "metric"]


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """What is denoised, and from what.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> DenoiseConfig(blocks=(2, 6)).of_image(8), DenoiseConfig().of_image(8)
        ((2, 6), (8,))
    """

    path: Path = "mask"  # unknown tokens are masked, or codes move from anywhere to nearby ones and may be mended
    # Sizes of the blocks of an image in the order of writing, so from the coarsest ids on; none is one block of all.
    blocks: tuple[PositiveInt, ...] = ()
    text_block: NonNegativeInt = 0  # tokens of text that are denoised together; 0 leaves text to be written in order
    metric: MetricPath = field(default_factory=MetricPath)  # of path=metric

    def __post_init__(self):
        check_settings(self)
        if self.path == "metric" and self.text_block:
            raise ValueError(
                f"text_block ({self.text_block}) must be 0 with path=metric, whose codes are those of images"
            )

    def of_image(self, num_tokens: int) -> tuple[int, ...]:
        """Return the sizes of the blocks of an image of K tokens.

        Raises:
            ValueError: If they are not K in all.
        """
        blocks = self.blocks or (num_tokens,)
        if sum(blocks) != num_tokens:
            raise ValueError(f"blocks {list(blocks)} are {sum(blocks)} tokens in all, an image has {num_tokens}")
        return blocks

    def record(self, config: "PretrainedConfig") -> None:
        """Write it beside the visual vocabulary into the config of a model."""
        config.ddt = {**config.ddt, "denoise": asdict(self)}

    @classmethod
    def from_config(cls, config: "PretrainedConfig") -> Self:
        """Read what a model was adapted to.

        Raises:
            ValueError: If it never was, or what is recorded is none of this.
        """
        VisualVocabulary.from_config(config)
        if (found := config.ddt.get("denoise")) is None:
            raise ValueError("the language model writes token by token; to denoise, adapt it with ddt adapt")
        try:
            return cls(**{**found, "blocks": tuple(found["blocks"]), "metric": MetricPath(**found["metric"])})
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"'denoise' in the model's config is damaged ({error}): adapt the model again") from error


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a model learns to denoise.

    Raises:
        ValueError: If a value is outside its range.
    """

    in_order: NonNegativeFloat = 1.0  # weight in the loss of a token written in order, over one denoised; 0 forgets it
    in_order_steps: NonNegativeInt = 0  # steps at first that train writing in order alone (Dimple, arXiv:2505.16990)
    # Each block twice, with what one masks known in the other, so that each token is supervised once (LaViDa,
    # arXiv:2505.16839): gradients vary less, and a step takes up to half as long again.
    complementary: bool = True
    shift: PositiveFloat = 1.0  # of the time in training, as in decoding; above 1 more is masked
    # Weigh blocks by 1 / share masked: with shift=1 the loss bounds the nats of what is written in any order.
    likelihood: bool = False
    whole_share: Share = 0.0  # share of images that are one block, for decoding without blocks

    def __post_init__(self):
        check_settings(self)
