"""ddt bench: how fast this machine encodes, decodes, trains and writes, each part in a process of its own."""

import contextlib
import io
import json
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddt_apps.machine import rehearsal
from ddt_apps.machine.doctor import memory, versions
from ddt_apps.machine.ledger import Ledger
from ddt_apps.machine.plan import plan
from ddt_apps.machine.rehearsal import clock, high_water, matrix_peak, prepare, rehearse
from ddt_apps.models import load_language_model
from ddt_apps.run.atomic import writing
from ddt_apps.run.config import find_config, load_config
from ddt_apps.run.devices import pick_compile, pick_device, pick_precision
from ddt_apps.run.progress import StageProgress
from ddt_apps.run.settings import RunSettings
from ddt_apps.run.yaml_file import read_yaml
from ddt_apps.train.examples import text_lines
from ddt_apps.train.pretrain import build_model
from ddt_apps.train.settings import Pretrain, TrainTokenizer, TrainVAE
from ddt_data import ShardWriter, open_shards
from ddt_decoder import DDTDecoder
from ddt_tokenizer import DDTTokenizer, LatentConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.vae_training import build_vae, save_vae

GB = 1e9
FORMAT = 1
USUAL = ("tiny/tokenizer", "tiny/pretrain", "small/tokenizer", "small/pretrain")
STEPS = (1, 4, 25)  # of a decoder
DRAWN, WRITTEN = 8, 16  # pictures decoded, and images written, at once
LEAST, SECONDS = 3, 2.0  # times that something is done, and for how long, before its median is taken
CAPTION = "a red fox left of a bell"


def bench(names: Sequence[str], overrides: Sequence[str] = (), ids: tuple[int, int] | None = None) -> dict[str, Any]:
    """Measure configurations on random inputs and untrained weights.

    Args:
        names: Configurations of tokenizers and of pretraining: shipped ones, files, or folders of runs. A language
            model reads the ids of the tokenizer before it.
        overrides: Settings of all, as `precision=bf16`.
        ids: V and K for a language model without a tokenizer before it.

    Returns:
        `machine`, and `rows` with `config`, `work`, `device`, `precision`, `compile`, `batch`, `seconds` (median),
        `repeats`, `unit`, `rate` (units a second), `flops`, `mfu` and `memory` (bytes at the most: of a CPU those above
        what libraries take).

    Raises:
        ValueError: If a configuration cannot be measured.
    """
    tasks: list[tuple[Callable, RunSettings, Any]] = []
    for name in names:
        config = _config(name, overrides)
        if isinstance(config, TrainTokenizer):
            ids = config.codec.quantizer.codebook_size, sum(config.codec.schedule)
            tasks += [(encode, config, name), (decode, config, name), (train, config, name)]
        elif ids is None:
            raise ValueError(f"{name!r} reads ids; name a tokenizer before it, or say --ids 65536 480")
        else:
            tasks += [(train, config, (name, ids)), (generate, config, (name, ids))]
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    context.set_forkserver_preload([__name__])  # libraries are loaded once
    rows = []
    with (
        StageProgress("bench", len(tasks), unit="parts") as progress,
        ProcessPoolExecutor(1, context, initializer=_begin, initargs=(SECONDS,), max_tasks_per_child=1) as pool,
    ):
        for done, (work, config, known) in enumerate(tasks, 1):
            name, known_ids = known if isinstance(known, tuple) else (known, None)
            try:
                found = pool.submit(_measured, work, config, known_ids).result()
            except BrokenProcessPool as error:
                said = f"{name!r} was killed, perhaps for lack of memory; set a smaller batch_size="
                raise ValueError(said) from error
            rows += [{"config": name, **row} for row in found]
            progress.update(done)
    return {"format": FORMAT, "machine": machine(pick_device(config.device)), "rows": rows}


def _config(name: str, overrides: Sequence[str]) -> RunSettings:
    source = Path(name, "config.yaml") if Path(name, "config.yaml").is_file() else name
    kind = TrainTokenizer if "codec" in read_yaml(find_config(source), []) else Pretrain
    return load_config(kind, source, ["data=random", *overrides])


def _begin(seconds: float) -> None:
    """Begin a process of its own; the command itself ends it on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global SECONDS
    SECONDS = rehearsal.SECONDS = seconds


def _measured(work: Callable, config: RunSettings, ids: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Do a part in a process that has done nothing else."""
    device = pick_device(config.device)
    libraries = high_water(device)
    precision = pick_precision(config.precision, device)
    with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        rows = work(config, device, ids, Path(folder))
    peak = matrix_peak(device, precision)
    compiled = pick_compile(config.compile, device) if work is train and config.compile == "on" else "off"
    said = {"device": device.type, "precision": precision, "compile": compiled, "peak": peak}
    for row in rows:
        row["memory"] -= libraries
        row |= {"rate": row.pop("count") / row["seconds"], "mfu": row["flops"] / row["seconds"] / peak}
    return [{**said, **row} for row in rows]


def encode(config: TrainTokenizer, device: torch.device, ids: Any, folder: Path) -> list[dict[str, Any]]:
    """Pictures to ids."""
    codec = _codec(config, device, folder)
    images = torch.rand(config.batch_size, 3, codec.image_size, codec.image_size, device=device) * 2 - 1
    return [_timed("encode", "images", len(images), len(images), device, lambda: codec.encode(images))]


def decode(config: TrainTokenizer, device: torch.device, ids: Any, folder: Path) -> list[dict[str, Any]]:
    """Ids to pictures, in few steps and in many."""
    codec = _codec(config, device, folder)
    some = torch.randint(codec.codebook_size, (DRAWN, codec.num_tokens), device=device)

    def in_steps(steps: int) -> dict[str, Any]:
        what = "decode, 1 step" if steps == 1 else f"decode, {steps} steps"
        return _timed(what, "images", DRAWN, DRAWN, device, lambda: codec.decode(some, num_steps=steps))

    return [in_steps(steps) for steps in STEPS]


def train(config: RunSettings, device: torch.device, ids: Any, folder: Path) -> list[dict[str, Any]]:
    """Steps of Lightning's trainer, as a run takes them; latents are cached."""
    module, batches = prepare(config, config.batch_size, ids=ids)
    language = isinstance(config, Pretrain)
    count = batches[0]["input_ids"].numel() if language else config.batch_size
    seconds, most = rehearse(config, module, batches)
    row = {"work": "train", "unit": "tokens" if language else "images", "batch": config.batch_size}
    flops = plan(replace(config, devices=1), ids=ids).flops
    return [{**row, "count": count * config.accumulate, "seconds": seconds, "flops": flops, "memory": most}]


def generate(config: Pretrain, device: torch.device, ids: tuple[int, int], folder: Path) -> list[dict[str, Any]]:
    """Captions to ids."""
    identity = {"fingerprint": "0" * 16, "codebook_size": ids[0], "num_tokens": ids[1]}
    with ShardWriter(folder / "ids", source="random", tokenizer=identity) as writer:
        writer.write({"key": "0", "text": CAPTION, "ids": torch.randint(*ids[:1], (ids[1],)).numpy()})
    (folder / "run").mkdir()
    build_model(config, open_shards(str(folder / "ids")), text_lines(config.text)).save_pretrained(
        folder / "run" / "model"
    )
    lm = load_language_model(folder / "run", _of_inference(config, device))
    lm.model.to(device)
    prompts = [CAPTION] * WRITTEN
    tokens = WRITTEN * ids[1]
    work = lambda: lm.generate_batch(prompts, output="image")  # noqa: E731
    return [_timed("generate", "tokens", WRITTEN, tokens, device, work)]


def _of_inference(config: RunSettings, device: torch.device) -> str:
    return "bf16" if pick_precision(config.precision, device).startswith("bf16") else "32"


def _codec(config: TrainTokenizer, device: torch.device, folder: Path) -> Codec:
    """Make an untrained codec, with an autoencoder of `ddt train-vae` where its latents need one."""
    settings, space = config.codec, config.codec.latents
    if config.vae:
        settings = replace(settings, latents=LatentConfig.from_vae(config.vae))
    elif space.vae is None and not space.pixels:
        shape = load_config(TrainVAE, "small/vae", ["data=random"]).vae
        save_vae(build_vae(replace(shape, channels=space.channels, downscale=space.downscale)), folder / "vae")
        settings = replace(settings, latents=LatentConfig.from_vae(str(folder / "vae")))
    tokenizer, decoder = DDTTokenizer(settings.tokenizer), DDTDecoder(settings.decoder)
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    codec = Codec(tokenizer.to(device), decoder.to(device))
    tokenizer.precision = decoder.precision = _of_inference(config, device)
    return codec


def _timed(
    what: str, unit: str, batch: int, count: int, device: torch.device, work: Callable[[], Any]
) -> dict[str, Any]:
    with Ledger() as ledger:
        work()
    took: list[float] = []
    while len(took) < LEAST or sum(took) < SECONDS:
        begin = clock(device)
        work()
        took.append(clock(device) - begin)
    row = {"work": what, "unit": unit, "batch": batch, "count": count, "seconds": statistics.median(took)}
    return {**row, "repeats": len(took), "flops": ledger.flops, "memory": high_water(device)}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a result is to be compared by."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = platform.processor() or platform.machine()
    if (file := Path("/proc/cpuinfo")).exists():
        names = [line.partition(": ")[2] for line in file.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    module = torch.get_device_module(device)
    name = module.get_device_name() if hasattr(module, "get_device_name") else cpu
    found = {"device": device.type, "name": name, "cpu": cpu, "cores": cores, "threads": torch.get_num_threads()}
    return {**found, "memory": memory(), "system": platform.platform(), "versions": versions()}


def save(found: dict[str, Any], file: Path) -> None:
    """Write what was measured."""
    with writing(file) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")


def load(file: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        ValueError: If it is something else.
    """
    try:
        found = json.loads(file.read_text())
        if found["format"] == FORMAT and found["rows"]:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{file} is not of ddt bench, or of another version of it; run ddt bench --out {file}")


def told(found: Sequence[dict[str, Any]]) -> str:
    """Lay out what one machine does, or several side by side."""
    lines = []
    for number, each in enumerate(found, 1):
        at = each["machine"]
        number_of = f"{number}  " if len(found) > 1 else ""
        lines.append(
            f"{number_of}{at['name']}: {at['cores']} cores, {at['threads']} threads, {at['memory'] / GB:.0f} GB; torch "
            f"{at['versions']['torch']}"
        )
    names = ("config", "work", "batch", "device", "dtype", "compile")
    table = [
        (*names, "rate", "TFLOP/s", "MFU", "memory")
        if len(found) == 1
        else (*names, *map(str, range(1, len(found) + 1)))
    ]
    rows: dict[tuple, dict[int, dict]] = {}
    for number, each in enumerate(found):
        for row in each["rows"]:
            key = tuple(str(row[name]) for name in ("config", "work", "batch", "device", "precision", "compile"))
            rows.setdefault(key, {})[number] = row
    for key, cells in rows.items():
        if len(found) > 1:
            table.append((*key, *(_rate(cells[n]) if n in cells else "" for n in range(len(found)))))
        else:
            row = cells[0]
            share = f"{100 * row['mfu']:.0f} %"
            table.append(
                (*key, _rate(row), f"{row['flops'] / row['seconds'] / 1e12:.3g}", share, f"{row['memory'] / GB:.2f} GB")
            )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines)


def _rate(row: dict[str, Any]) -> str:
    if row["work"].startswith("decode"):
        return f"{1 / row['rate']:.3g} s/image"
    return f"{row['rate']:,.0f} {row['unit']}/s" if row["rate"] >= 10 else f"{row['rate']:.2g} {row['unit']}/s"
