"""A run before it begins: its module with random weights, a batch as it will get them, and a few steps of the trainer.

`ddt plan` counts them on the meta device and tries them on this one; `ddt bench` measures them.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ddt_apps.run.accelerator import placement
from ddt_apps.run.compiling import Compiling
from ddt_apps.run.devices import pick_compile, pick_device, pick_precision
from ddt_apps.run.fitting import quiet_lightning
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.language import joining
from ddt_apps.train.settings import LanguageRun, Pretrain, TrainRenderer, TrainTokenizer, TrainVAE, Tune
from ddt_data import open_shards
from ddt_tokenizer import LatentConfig
from ddt_tokenizer.latents import split_source

WORDS = 24  # tokens of a caption, a question or an instruction
# Gated backbones, where the Hub cannot be asked.
SHAPES = {
    "meta-llama/Meta-Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "meta-llama/Llama-3.2-3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}
WARM, LEAST, MOST, SECONDS = 3, 4, 40, 3.0  # steps that do not count, those that do, and for how long
BATCHES = 8  # of id shards


def prepare(
    config: RunSettings, rows: int, device: str = "cpu", ids: tuple[int, int] | None = None
) -> tuple[LightningModule, list]:
    """Make what a run trains, in its last phase and untrained, and batches: random ones, or those of its id shards.

    Args:
        config: Of any verb that trains.
        rows: Samples of a batch.
        device: "meta" makes both without values.
        ids: V and K of the ids, for a language model whose id shards are not there yet.

    Raises:
        ValueError: If what the run starts from is needed and is not there.
    """
    torch.manual_seed(config.seed)
    make: Callable = {TrainTokenizer: _tokenizer, TrainVAE: _vae, TrainRenderer: _renderer}.get(type(config))
    return make(config, rows, device) if make else _language(config, rows, device, ids)


def _tokenizer(config: TrainTokenizer, rows: int, device: str) -> tuple[LightningModule, list]:
    from ddt_decoder import DDTDecoder
    from ddt_tokenizer import DDTTokenizer
    from ddt_tokenizer.training import TokenizerTraining

    codec = config.codec
    if config.vae and Path(config.vae).is_dir():
        codec = replace(codec, latents=LatentConfig.from_vae(config.vae))
    with torch.device(device):
        tokenizer, decoder = DDTTokenizer(codec.tokenizer), DDTDecoder(codec.decoder)
        side = codec.image_size // codec.latents.downscale
        batch = torch.randn(rows, codec.latents.channels, side, side)
    training = replace(config.training, continuous_steps=0, whole_steps=0)
    return TokenizerTraining(tokenizer, decoder, training, config.seed, cached_latents=True), [batch]


def autoencoder(vae: str | None, space: LatentConfig) -> torch.nn.Module:
    """Make an autoencoder without its weights: that of a folder, or Stable Diffusion 3's.

    Raises:
        ValueError: If there is no such folder, and the latents are of other channels than those of Stable Diffusion 3.
    """
    import diffusers

    shape = dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), False)
    shape |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    shape |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    kind = diffusers.AutoencoderKL
    folder, _ = split_source(vae or "")
    if vae and Path(folder).is_dir():
        shape = kind.load_config(folder)
        kind = getattr(diffusers, shape["_class_name"])
    elif (space.channels, space.downscale) != (16, 8):
        raise ValueError(f"vae '{vae}' is not here, of which the work is to be counted; name a folder with vae=")
    with torch.device("meta"):
        return kind.from_config(shape).eval()


def _vae(config: TrainVAE, rows: int, device: str) -> tuple[LightningModule, list]:
    from ddt_tokenizer.vae_training import VAETraining, build_vae

    module = VAETraining(build_vae(config.vae, config.seed).train(), config.training, config.seed).to(device)
    return module, [torch.rand(rows, 3, config.image_size, config.image_size, device=device) * 2 - 1]


def _renderer(config: TrainRenderer, rows: int, device: str) -> tuple[LightningModule, list]:
    from ddt_decoder import DDTRenderer
    from ddt_decoder.renderer_training import RendererTraining
    from ddt_tokenizer.codec import Codec

    decoder = Codec.from_pretrained(config.tokenizer).decoder
    renderer = DDTRenderer.from_decoder(decoder, prefixes=config.training.prefix_share > 0).train()
    module = RendererTraining(renderer, replace(config.training, second_phase_step=0)).to(device)
    size = decoder.config.image_size
    ids = torch.randint(decoder.config.codebook_size, (rows, decoder.num_tokens), device=device)
    return module, [(ids, torch.rand(rows, 3, size, size, device=device) * 2 - 1)]


def _language(config: LanguageRun, rows: int, device: str, ids: tuple[int, int] | None) -> tuple[LightningModule, list]:
    from ddt_llm import VisualVocabulary
    from ddt_llm.lora import add_lora
    from ddt_llm.training import LanguageModelTraining

    batches, own = [], not isinstance(config, Pretrain) or config.backbone == "tiny" or Path(config.backbone).is_dir()
    known = ids or _ids_of(config.data)
    if ids is None and own:
        begin = import_module(f"ddt_apps.train.{config.verb}").begin
        lm, views = begin(config, device)
        model, join = lm.model, joining(lm, config)
        batches = [join([views[i % len(views)] for i in range(n * rows, (n + 1) * rows)]) for n in range(BATCHES)]
        if device == "meta":  # where nobody can see which examples of a row belong together
            batches = [{name: batch[name].to("meta") for name in ("input_ids", "labels")} for batch in batches]
    else:
        model = _backbone(config, device)
        if getattr(model.config, "ddt", None) is None:
            vocabulary = VisualVocabulary(
                text_size=model.config.vocab_size, codebook_size=known[0], num_tokens=known[1]
            )
            multiple = getattr(config, "multiple", 1)
            with torch.device(device):
                model.resize_token_embeddings(-(-vocabulary.size // multiple) * multiple, mean_resizing=False)
            model.config.ddt = asdict(vocabulary)
    if config.lora:
        add_lora(model, config.lora, config.seed)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = replace(config.optimizer, new_rows_steps=0)
    module = LanguageModelTraining(model.train(), optimizer, config.seed, keep_text=config.lora is not None)
    return module, batches or [examples(config, module.vocabulary, rows, device)]


def examples(config: LanguageRun, vocabulary: Any, rows: int, device: str) -> dict[str, Tensor]:
    """Make a batch of random tokens as long as examples of the tasks are on average, packed if the run packs them."""
    from ddt_llm.sequences import IGNORED

    tasks = asdict(config.tasks)
    shares = {name: share for name, share in tasks.items() if not name.endswith("_dropout")}
    images = {"text_only": 0, "edit": 2, "talk": 2}  # of an example; all others have one
    mean = sum(images.get(name, 1) * share for name, share in shares.items()) / sum(shares.values())
    length = round(mean * vocabulary.image_length) + WORDS
    if not config.row_length and isinstance(config, Tune):  # padded to the longest
        length = 2 * vocabulary.image_length + WORDS
    elif not config.row_length:
        length = vocabulary.image_length + WORDS
    places = torch.arange(length, device=device)
    if config.row_length:
        tokens, rows = rows * length, math.ceil(rows * length / config.row_length)
        places = torch.arange(min(tokens, config.row_length), device=device) % length
    tokens = torch.randint(vocabulary.text_size, (rows, len(places)), device=device)
    batch = {"input_ids": tokens, "labels": tokens.clone()}
    if isinstance(config, Tune) and device != "meta":  # answers alone are trained
        batch["labels"][:, places < length // 2] = IGNORED
    if config.row_length and device != "meta":
        batch["position_ids"] = places.repeat(rows, 1)
    return batch


def _backbone(config: LanguageRun, device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    from ddt_llm.backbone import tiny_llama_config

    if not isinstance(config, Pretrain):
        shape = AutoConfig.from_pretrained(Path(config.model) / "model", local_files_only=True)
    elif config.backbone == "tiny":
        shape = tiny_llama_config(config.llama, config.text_vocabulary)
    elif config.backbone in SHAPES:
        shape = LlamaConfig(**SHAPES[config.backbone])
    else:
        shape = AutoConfig.from_pretrained(config.backbone)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def _ids_of(data: str) -> tuple[int, int]:
    try:
        identity = open_shards(data).manifest.tokenizer
    except FileNotFoundError as error:
        raise ValueError(f"{error}; or say what its ids will be, as --ids 65536 480") from error
    if identity is None:
        raise ValueError(f"'{data}' holds pictures, not ids; say what its ids will be, as --ids 65536 480")
    return identity["codebook_size"], identity["num_tokens"]


class Clock(Callback):
    """Times steps, from the end of one to the end of the next, and ends training when it has seen enough."""

    def __init__(self, device: torch.device, accumulate: int):
        self.device, self.accumulate = device, accumulate
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, i: int) -> None:
        if (i + 1) % self.accumulate:
            return
        self.ends.append(clock(self.device))
        took = self.seconds
        trainer.should_stop = len(took) >= LEAST and sum(took) >= SECONDS

    @property
    def seconds(self) -> list[float]:
        """Of each step that counts."""
        return [end - begin for begin, end in zip(self.ends, self.ends[1:], strict=False)][WARM - 1 :]


def rehearse(config: RunSettings, module: LightningModule, batches: list) -> tuple[float, int]:
    """Let Lightning's trainer take a few steps here as it does in a run; return seconds of one, and bytes at the most.

    Args:
        module, batches: Of `prepare`.
    """
    device = pick_device(config.device)
    watch = Clock(device, config.accumulate)
    compiling = []
    if config.compile == "on" and pick_compile("on", device) == "on" and hasattr(module, "networks"):
        compiling = [Compiling(0, lambda _: None, lambda _: None)]
    many = list(islice(cycle(batches), config.accumulate * MOST))
    with quiet_lightning():
        Trainer(
            **placement(device, pick_precision(config.precision, device), "ddp", False),
            max_epochs=1,
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            callbacks=[*compiling, watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(many, batch_size=None))
    return statistics.median(watch.seconds), high_water(device)


def high_water(device: torch.device) -> int:
    """Return the most bytes that this process has had on a device; 0 where it does not say."""
    if device.type != "cpu":
        return getattr(torch.get_device_module(device), "max_memory_reserved", int)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matrix_peak(device: torch.device, precision: str, size: int = 2048) -> float:
    """Measure floating-point operations a second of matrix products in a precision by Lightning's name."""
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    times, seconds = 1, 0.0
    while seconds < 0.2:  # the first product warms up, and all but the last round too
        times *= 2
        begin = clock(device)
        for _ in range(times):
            left @ right
        seconds = clock(device) - begin
    return 2 * size**3 * times / seconds


def clock(device: torch.device) -> float:
    """Return seconds: on a CPU those in which this thread computes, so that the work of others does not count."""
    if device.type == "cpu":
        return time.thread_time()
    torch.accelerator.synchronize()
    return time.perf_counter()
