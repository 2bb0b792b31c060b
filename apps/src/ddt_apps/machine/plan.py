"""ddt plan: what a run would take of a device, before it waits in a queue: memory by part, operations, time, energy.

A step is run on the meta device, where nothing is computed and every tensor is counted (`ddt_apps.machine.ledger`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddt_apps.machine.ledger import Step, count
from ddt_apps.run.compiling import blocks
from ddt_apps.run.devices import pick_device, pick_precision
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.settings import LanguageRun, Pretrain, TrainRenderer, TrainTokenizer, TrainVAE
from ddt_data import open_shards
from ddt_tokenizer import LatentConfig

GB = 1e9
WORDS = 24  # tokens of a caption
FOUR_BITS = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes of a weight, with a scale for 64 of them, and one for 256 scales
FORMAT = "bf16-mixed"  # in which the peaks below are reached


@dataclass(frozen=True)
class Device:
    """What its maker says of a device."""

    memory: float  # GB
    peak: float  # TFLOP/s of dense products in bf16
    watts: float


DEVICES = {
    "h100": Device(80, 989, 700),
    "h200": Device(141, 989, 700),
    "a100": Device(80, 312, 400),
    "l40s": Device(48, 362, 350),
    "rtx4090": Device(24, 165, 450),
    "910b": Device(64, 313, 400),
}
# Backbones that shipped configurations name, where the Hub cannot be asked.
SHAPES = {
    "meta-llama/Meta-Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }
}


@dataclass(frozen=True)
class Plan:
    """What a step of a run takes of each device. Bytes, seconds."""

    total: int  # weights
    trained: int
    devices: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    exchange: float  # what processes hold to exchange
    saving: float  # more while it saves
    flops: float  # of a step, on each device
    step: Step

    @property
    def memory(self) -> float:
        """Bytes of a device at most."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.exchange + self.saving


def precision_of(config: RunSettings, on: str | None) -> str:
    """Return the precision of a run on a device of `DEVICES`, or here, by Lightning's name."""
    if config.precision == "auto":
        return FORMAT if on else pick_precision("auto", pick_device())
    return pick_precision(config.precision, torch.device("meta"))


def plan(config: RunSettings, on: str | None = None, ids: tuple[int, int] | None = None) -> Plan:
    """Plan a run.

    Args:
        on: Name of a device in `DEVICES`; None is this machine's.
        ids: V and K of the ids, for a language model whose id shards are not there yet.

    Raises:
        ValueError: If what the run starts from is needed and is not there, or its batch cannot be shared.
    """
    devices = 1 if config.devices == "auto" else config.devices
    if config.batch_size % devices:
        raise ValueError(f"batch_size ({config.batch_size}) must be divisible by devices ({devices})")
    module, batch, number = _parts(config, config.batch_size // devices, ids)
    cpu = on is None and pick_device(config.device).type == "cpu"
    step = Step(module, batch, number, precision_of(config, on) == FORMAT, cpu, config.gradient_clip)
    total, trained = count(module)
    largest = max(p.numel() * p.element_size() for p in module.parameters())
    kept = (step.weights - _spared(config, module), step.gradients, step.optimizer, step.activations)
    found = Plan(
        total, trained, devices, *kept, exchange=0, saving=largest, flops=step.flops * config.accumulate, step=step
    )
    if devices == 1:
        return found
    if not config.sharded:
        return replace(found, exchange=step.gradients)  # DDP's buckets
    units = [_size(block) for network in module.networks for block in blocks(network)]
    rest = step.weights - sum(units)
    shared = {name: getattr(found, name) / devices for name in ("weights", "gradients", "optimizer")}
    # Two blocks are whole, with the gradients of one; and the rest with its own.
    return replace(found, **shared, exchange=3 * max(units, default=0) + 2 * rest)


def _spared(config: RunSettings, module: torch.nn.Module) -> float:
    """Return the bytes less that frozen layers take in four bits: on the meta device they are in 32."""
    if not isinstance(config, LanguageRun) or config.bits == 32:
        return 0
    layers = [layer.weight for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return sum((4 - FOUR_BITS) * weight.numel() for weight in layers if not weight.requires_grad)


def _size(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _parts(config: RunSettings, rows: int, ids: tuple[int, int] | None) -> tuple[Any, Any, int]:
    """Make the module on the meta device, a batch of it, and the number of a step of its last phase."""
    make: Callable = {TrainTokenizer: _tokenizer, TrainVAE: _vae, TrainRenderer: _renderer}.get(type(config))
    return make(config, rows) if make else _language(config, rows, ids)


def _tokenizer(config: TrainTokenizer, rows: int) -> tuple[Any, Any, int]:
    from ddt_decoder import DDTDecoder
    from ddt_tokenizer import DDTTokenizer
    from ddt_tokenizer.training import TokenizerTraining

    codec = config.codec
    if config.vae and Path(config.vae).is_dir():
        codec = replace(codec, latents=LatentConfig.from_vae(config.vae))
    with torch.device("meta"):
        tokenizer, decoder = DDTTokenizer(codec.tokenizer), DDTDecoder(codec.decoder)
    module = TokenizerTraining(tokenizer, decoder, config.training, config.seed, cached_latents=True)
    side = codec.image_size // codec.latents.downscale
    batch = torch.empty(rows, codec.latents.channels, side, side, device="meta")
    return module, batch, max(config.training.continuous_steps, config.training.whole_steps)


def _vae(config: TrainVAE, rows: int) -> tuple[Any, Any, int]:
    from ddt_tokenizer.vae_training import VAETraining, build_vae

    module = VAETraining(build_vae(config.vae, config.seed).train(), config.training, config.seed).to("meta")
    return module, torch.empty(rows, 3, config.image_size, config.image_size, device="meta"), 0


def _renderer(config: TrainRenderer, rows: int) -> tuple[Any, Any, int]:
    from ddt_decoder import DDTRenderer
    from ddt_decoder.renderer_training import RendererTraining
    from ddt_tokenizer.codec import Codec

    decoder = Codec.from_pretrained(config.tokenizer).decoder
    renderer = DDTRenderer.from_decoder(decoder, prefixes=config.training.prefix_share > 0).train()
    module = RendererTraining(renderer, config.training).to("meta")
    ids = torch.zeros(rows, decoder.num_tokens, dtype=torch.long, device="meta")
    image = torch.empty(rows, 3, decoder.config.image_size, decoder.config.image_size, device="meta")
    return module, (ids, image), config.training.second_phase_step


def _language(config: LanguageRun, rows: int, ids: tuple[int, int] | None) -> tuple[Any, Any, int]:
    from ddt_llm import VisualVocabulary
    from ddt_llm.lora import add_lora
    from ddt_llm.training import LanguageModelTraining

    model = _backbone(config)
    if getattr(model.config, "ddt", None) is None:
        size, tokens = ids or _ids_of(config.data)
        vocabulary = VisualVocabulary(text_size=model.config.vocab_size, codebook_size=size, num_tokens=tokens)
        multiple = getattr(config, "multiple", 1)
        with torch.device("meta"):
            model.resize_token_embeddings(-(-vocabulary.size // multiple) * multiple, mean_resizing=False)
        model.config.ddt = asdict(vocabulary)
    if config.lora:
        add_lora(model, config.lora, config.seed)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    module = LanguageModelTraining(model.train(), config.optimizer, config.seed, keep_text=config.lora is not None)
    length = module.vocabulary.num_tokens + WORDS
    if config.row_length:
        rows, length = math.ceil(rows * length / config.row_length), config.row_length
    tokens = torch.zeros(rows, length, dtype=torch.long, device="meta")
    return module, {"input_ids": tokens, "labels": tokens}, config.optimizer.new_rows_steps


def _backbone(config: LanguageRun) -> Any:
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
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def _ids_of(data: str) -> tuple[int, int]:
    try:
        identity = open_shards(data).manifest.tokenizer
    except FileNotFoundError as error:
        raise ValueError(f"{error}; or say what its ids will be, as --ids 65536 480") from error
    if identity is None:
        raise ValueError(f"'{data}' holds pictures, not ids; say what its ids will be, as --ids 65536 480")
    return identity["codebook_size"], identity["num_tokens"]


def smaller(config: RunSettings) -> Iterator[tuple[str, RunSettings]]:
    """Yield ways to take less memory, each on top of those before: what to type, and the settings."""
    typed: list[str] = []
    devices = 1 if config.devices == "auto" else config.devices

    def adding(words: str, **settings: Any) -> tuple[str, RunSettings]:
        nonlocal config
        typed.append(words)
        config = replace(config, **settings)
        return " ".join(typed), config

    if isinstance(config, LanguageRun) and not config.activation_checkpointing:
        yield adding("activation_checkpointing=true", activation_checkpointing=True)
    if isinstance(config, TrainTokenizer) and not config.codec.network.activation_checkpointing:
        network = replace(config.codec.network, activation_checkpointing=True)
        yield adding("codec.network.activation_checkpointing=true", codec=replace(config.codec, network=network))
    if devices > 1 and not config.sharded and not isinstance(config, TrainVAE):
        yield adding("strategy=fsdp2", strategy="fsdp2")
    whole, accumulate = config.batch_size, config.accumulate
    parts = 2
    while whole % (parts * devices) == 0:
        batch = {"batch_size": whole // parts, "accumulate": accumulate * parts}
        yield (
            " ".join([*typed, f"batch_size={batch['batch_size']} accumulate={batch['accumulate']}"]),
            replace(config, **batch),
        )
        parts *= 2
    if isinstance(config, LanguageRun) and not config.lora:
        from ddt_llm.lora import LoRAConfig

        yield adding("lora.rank=64", lora=LoRAConfig(rank=64))


def told(config: RunSettings, on: str | None, efficiency: float, ids: tuple[int, int] | None = None) -> str:
    """Plan a run and tell what it takes of each device, how long it lasts, and what would make it fit.

    Args:
        efficiency: Share of a named device's peak that training reaches (MFU); here operators are timed.
    """
    found = plan(config, on, ids)
    memory, seconds, energy, where = _of_device(found, on, efficiency)
    each = [("weights", found.weights), ("gradients", found.gradients), ("optimizer", found.optimizer)]
    each += [("activations", found.activations), ("exchange", found.exchange), ("saving", found.saving)]
    each += [] if on else [("process", _process())]
    total = sum(size for _, size in each)
    days, rows = seconds * config.steps / 86400, config.batch_size * config.accumulate
    unit = "examples" if isinstance(config, LanguageRun) else "pictures"
    strategy = "" if found.devices == 1 else f" by {'fsdp2' if config.sharded else 'ddp'}"
    lines = [
        f"{config.verb} on {found.devices} x {where}{strategy} in {precision_of(config, on)}",
        f"weights   {found.total:,}, of which {found.trained:,} learn",
        f"memory    {total / GB:.1f} of {memory / GB:.0f} GB on each: "
        + ", ".join(f"{name} {size / GB:.2f}" for name, size in each if size),
        f"a step    {found.flops / 1e12:.3g} TFLOP on each, {rows:,} {unit} together, {seconds:.3g} s: "
        f"{rows / seconds:,.0f} {unit}/s, {found.flops / seconds / 1e12:.3g} TFLOP/s on each",
        f"the run   {config.steps:,} steps, {days * 24:.3g} hours" + (f" or {days:.3g} days" if days > 2 else ""),
    ]
    if energy:
        lines.append(f"energy    {energy * found.devices * days * 24 / 1000:,.0f} kWh of the devices alone")
    if total > memory:
        lines.append(f"    ! it does not fit; {_remedy(config, on, ids, memory - (total - found.memory))}")
    return "\n".join(lines)


def _of_device(found: Plan, on: str | None, efficiency: float) -> tuple[float, float, float, str]:
    """Return bytes of a device, seconds of a step, watts, and its name."""
    if on:
        device = DEVICES[on]
        return device.memory * GB, found.flops / (device.peak * 1e12 * efficiency), device.watts, on
    from ddt_apps.machine.doctor import memory
    from ddt_apps.machine.timing import seconds_of

    device = pick_device()
    batches = round(found.flops / max(1, found.step.flops))
    operators = Counter({each: times * batches for each, times in found.step.operators.items()})
    seconds, share = seconds_of(operators + found.step.of_optimizer, device)
    held = memory() if device.type == "cpu" else _memory_of(torch.get_device_module(device))
    return held, seconds, 0.0, f"{device} ({100 * share:.0f} % of its calls were measured here)"


def _memory_of(module: Any) -> int:
    return module.mem_get_info()[1] if hasattr(module, "mem_get_info") else module.recommended_max_memory()


def _process() -> int:
    """Return what a process that trains holds before it does."""
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _remedy(config: RunSettings, on: str | None, ids: tuple[int, int] | None, memory: float) -> str:
    for typed, other in smaller(config):
        if plan(other, on, ids).memory <= memory:
            return f"it would with {typed}"
    return "nor with a smaller batch, checkpointing, sharding or adapters; take more devices or larger ones"
