"""ddt plan: what a run would take of a device, before it waits in a queue: memory by part, operations, time, energy.

A step is run on the meta device, where nothing is computed and every tensor is counted (`ddt_apps.machine.ledger`); on
this machine, if it fits, a few are then taken for their time (`ddt_apps.machine.rehearsal`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddt_apps.machine.doctor import memory as memory_of_machine
from ddt_apps.machine.ledger import Ledger, Step, count, on_meta
from ddt_apps.machine.rehearsal import autoencoder, high_water, matrix_peak, prepare, rehearse
from ddt_apps.run.compiling import blocks
from ddt_apps.run.devices import pick_device, pick_precision
from ddt_apps.run.settings import RunSettings
from ddt_apps.train.settings import LanguageRun, TrainTokenizer, TrainVAE
from ddt_tokenizer import LatentConfig

GB = 1e9
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
LONGEST = 30.0  # seconds of a step that is tried


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
    module, (batch, *_) = prepare(config, config.batch_size // devices, "meta", ids)
    cpu = on is None and pick_device(config.device).type == "cpu"
    step = Step(module, batch, precision_of(config, on) == FORMAT, cpu, config.gradient_clip)
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
    pretrained = isinstance(config, LanguageRun) and getattr(config, "backbone", "") != "tiny"
    if pretrained and config.bits == 32 and not config.sharded:
        yield adding("lora.bits=4", lora=replace(config.lora, bits=4))


def tokenizing(config: TrainTokenizer, on: str, efficiency: float) -> str:
    """Return in words how long a device makes ids of pictures, its autoencoder included, for as many jobs as you like.

    The autoencoder computes in fp32, for which half of the peak is reckoned, as in TF32.

    Args:
        efficiency: Share of the device's peak that is reached.

    Raises:
        ValueError: If the autoencoder of the latents is not known.
    """
    from ddt_tokenizer import DDTTokenizer

    device, rows, codec = DEVICES[on], 32, config.codec
    latents = config.vae and Path(config.vae).is_dir()
    codec = replace(codec, latents=LatentConfig.from_vae(config.vae)) if latents else codec
    space, vae = codec.latents, None
    with torch.device("meta"):
        tokenizer = DDTTokenizer(codec.tokenizer).eval()
        tokenizer.precision = "bf16"
        if not space.pixels:
            vae = autoencoder(config.vae, space)
        networks = [tokenizer] if vae is None else [tokenizer, vae]
        weights = sum(_size(network) for network in networks)
        side = codec.image_size // space.downscale
        with torch.no_grad(), Ledger() as of_vae:
            pictures = torch.empty(rows, 3, codec.image_size, codec.image_size)
            if vae is not None:
                vae.encode(pictures)
        with torch.no_grad(), on_meta(mixed=True), Ledger() as of_encoder:
            tokenizer.encode_latents(torch.empty(rows, space.channels, side, side))
    of_vae_flops, flops = of_vae.flops / rows, of_encoder.flops / rows
    rate = device.peak * 1e12 * efficiency / (2 * of_vae_flops + flops)
    memory, hours = weights + max(of_vae.peak, of_encoder.peak), 1e6 / rate / 3600
    return (
        f"tokenize on {on}, {rows} pictures of {codec.image_size} px at once\n"
        f"memory    {memory / GB:.3g} of {device.memory} GB: weights {weights / GB:.2f}\n"
        f"a picture {flops / 1e12:.3g} TFLOP in bf16, and of the autoencoder {of_vae_flops / 1e12:.3g} in fp32: "
        f"{rate:,.4g} pictures/s ({efficiency:.0%} of its peak)\n"
        f"a million {hours:.3g} hours of one device, {hours * device.watts / 1000:.3g} kWh"
    )


def told(config: RunSettings, on: str | None, efficiency: float, ids: tuple[int, int] | None = None) -> str:
    """Plan a run and tell what it takes of each device, how long it lasts, and what would make it fit.

    Args:
        efficiency: Share of a device's peak that training reaches (MFU), where no step is tried.
    """
    found = plan(config, on, ids)
    if on:
        memory, beside = DEVICES[on].memory * GB, 0.0
        seconds = found.flops / (DEVICES[on].peak * 1e12 * efficiency)
        how = f"{efficiency:.0%} of its peak"
    else:
        memory, seconds, beside, how = _here(config, found, efficiency, ids)
    parts = ("weights", "gradients", "optimizer", "activations", "exchange", "saving")
    each = [*((name, getattr(found, name)) for name in parts), ("process", beside)]
    total = sum(size for _, size in each)
    days, rows = seconds * config.steps / 86400, config.batch_size * config.accumulate
    unit = "examples" if isinstance(config, LanguageRun) else "pictures"
    strategy = "" if found.devices == 1 else f" by {'fsdp2' if config.sharded else 'ddp'}"
    where = on or pick_device(config.device)
    lines = [
        f"{config.verb} on {found.devices} x {where}{strategy} in {precision_of(config, on)}",
        f"weights   {found.total:,}, of which {found.trained:,} learn",
        f"memory    {total / GB:.3g} of {memory / GB:.0f} GB on each: "
        + ", ".join(f"{name} {size / GB:.2f}" for name, size in each if size),
        f"a step    {found.flops / 1e12:.3g} TFLOP on each, {rows:,} {unit} together, {seconds:.3g} s: "
        f"{rows / seconds:,.4g} {unit}/s, {found.flops / seconds / 1e12:.3g} TFLOP/s on each ({how})",
        f"the run   {config.steps:,} steps, {days * 24:.3g} hours" + (f" or {days:.3g} days" if days > 2 else ""),
    ]
    if on:
        energy = DEVICES[on].watts * found.devices * days * 24 / 1000
        lines.append(f"energy    {energy:,.0f} kWh of the devices alone")
    if total > memory:
        lines.append(f"    ! it does not fit; {_remedy(config, on, ids, memory - (total - found.memory))}")
    return "\n".join(lines)


def _here(
    config: RunSettings, found: Plan, efficiency: float, ids: tuple[int, int] | None
) -> tuple[float, float, float, str]:
    """Return bytes of this machine's device, seconds of a step, bytes beside those counted, and how that was found."""
    device = pick_device(config.device)
    memory, libraries = _memory_of(device), float(high_water(device))
    peak = matrix_peak(device, precision_of(config, None))
    seconds = found.flops / (peak * efficiency)
    four_bits = isinstance(config, LanguageRun) and config.bits != 32
    if found.devices > 1 or four_bits or seconds > LONGEST or found.memory + libraries > memory:
        return memory, seconds, libraries, f"{efficiency:.0%} of what products of matrices reach here"
    seconds, highest = rehearse(config, *prepare(config, config.batch_size, ids=ids))
    return memory, seconds, max(0.0, highest - found.memory + found.saving), "tried here"


def _memory_of(device: torch.device) -> int:
    if device.type == "cpu":
        return memory_of_machine()
    module = torch.get_device_module(device)
    return module.mem_get_info()[1] if hasattr(module, "mem_get_info") else module.recommended_max_memory()


def _remedy(config: RunSettings, on: str | None, ids: tuple[int, int] | None, memory: float) -> str:
    for typed, other in smaller(config):
        if plan(other, on, ids).memory <= memory:
            return f"it would with {typed}"
    return (
        "nor with a smaller batch, checkpointing, sharding or adapters; take more or larger devices, or a smaller model"
    )
