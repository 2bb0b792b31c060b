"""Samples a second from shards: ours, shuffled over all shards and resumable to the sample, and plain webdataset's.

python benchmarks/loader_speed.py

Both read the same files into the same batches, by turns of some batches, so that what else the machine does slows
both alike. Without workers CPU time is measured, with workers wall time. A ratio above 1 means that ours is quicker.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from ddt_data import Made, Plan, SceneConfig, ShardDataset, ShardWriter, StepSampler, build, pack_scenes, write_block
from ddt_data.shards.manifest import BLOCKS, Manifest

BATCH = 64
TURNS, BATCHES = 7, 12  # turns of each reader, batches in a turn
TOKENIZER = {"fingerprint": "benchmark", "codebook_size": 4096, "num_tokens": 64}


def collate(samples: list[dict], arrays: tuple[str, ...]) -> tuple[list[torch.Tensor], list, list]:
    """Stack what stacks, and list words and metadata."""
    stacked = [torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in arrays]
    return (
        stacked,
        [sample.get("text", sample.get("txt")) for sample in samples],
        [s.get("meta", s.get("json")) for s in samples],
    )


def ours(folder: Path, fields: tuple[str, ...], workers: int) -> Iterator:
    """Every sample once an epoch, in the order of a seed."""
    order = StepSampler(length=len(ShardDataset(folder)), batch_size=BATCH, steps=10**6, seed=0)
    stack = partial(collate, arrays=fields)
    return iter(DataLoader(ShardDataset(folder), batch_sampler=order, collate_fn=stack, num_workers=workers))


def plain(folder: Path, extensions: tuple[str, ...], workers: int) -> Iterator:
    """One shard after the other, as they lie, again and again."""
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8").repeat()
    stack = partial(collate, arrays=extensions)
    return iter(DataLoader(stream, batch_size=BATCH, collate_fn=stack, num_workers=workers))


def compare(name: str, readers: dict[str, Iterator], clock: Callable[[], float]) -> None:
    """Let readers take turns; print samples a second, and the median of the ratios of neighbouring turns."""
    for reader in readers.values():
        next(reader)  # start-up
    rates: dict[str, list[float]] = {reader: [] for reader in readers}
    for _ in range(TURNS):
        for reader, batches in readers.items():
            start = clock()
            for _ in range(BATCHES):
                next(batches)
            rates[reader].append(BATCHES * BATCH / (clock() - start))
    *mine, base = readers
    for reader in mine:
        ratio = statistics.median(a / b for a, b in zip(rates[reader], rates[base], strict=True))
        a, b = statistics.median(rates[reader]), statistics.median(rates[base])
        print(f"{name}: {reader} {a:,.0f}/s, {base} {b:,.0f}/s, ratio {ratio:.2f}", flush=True)


def write_ids(folder: Path, count: int) -> tuple[Path, Path]:
    """Write the same samples with ids as blocks, and with a member for each field."""
    rng = np.random.default_rng(0)
    samples = [
        {"key": f"{i:08d}", "text": f"a red fox left of {i} bells", "meta": {"i": i}, "ids": rng.integers(0, 4096, 64)}
        for i in range(count)
    ]
    with ShardWriter(folder / "members", samples_per_shard=1000, tokenizer=TOKENIZER) as writer:
        for sample in samples:
            writer.write(sample)
    tasks = [(first, samples[first : first + 1000]) for first in range(0, count, 1000)]
    plan = Plan(
        lambda: tasks,
        lambda path, part: Made(write_block(path, part, TOKENIZER)),
        Manifest(0, (), tokenizer=TOKENIZER, format=BLOCKS),
    )
    build(folder / "blocks", plan)
    return folder / "blocks", folder / "members"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scenes = Path(temporary, "scenes")
        pack_scenes(SceneConfig(), 1000, scenes, seed=0)
        blocks, members = write_ids(Path(temporary), 5_000)
        for workers, clock, unit in ((0, time.process_time, "CPU time"), (2, time.perf_counter, "wall time")):
            where = f"{workers} workers, {unit}"
            readers = {
                "ours": ours(scenes, ("image", "target"), workers),
                "webdataset": plain(scenes, ("png", "target.png"), workers),
            }
            compare(f"pictures 64 px, {where}", readers, clock)
            readers = {
                "blocks": ours(blocks, ("ids",), workers),
                "one member a field": ours(members, ("ids",), workers),
                "webdataset": plain(members, ("ids.npy",), workers),
            }
            compare(f"64 ids, {where}", readers, clock)


if __name__ == "__main__":
    main()
