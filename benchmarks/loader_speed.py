"""Samples a second from shards: ours, shuffled over all shards and resumable to the sample, and plain webdataset's.

python benchmarks/loader_speed.py [rounds=5] [batches=12]

Both read the same files into the same batches of 64, by turns of some batches, without workers and with two. A turn
with workers is a loader from its start to its end, so that the CPU time of its processes counts. Printed are the CPU
time of webdataset over ours, and samples a second of CPU time. One minute.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from pairs import cpu_seconds, settings, take_turns
from torch.utils.data import DataLoader

from ddt_data import Made, Plan, SceneConfig, ShardDataset, ShardWriter, StepSampler, build, pack_scenes, write_block
from ddt_data.shards.manifest import BLOCKS, Manifest

BATCH = 64
TOKENIZER = {"fingerprint": "benchmark", "codebook_size": 4096, "num_tokens": 64}


def collate(samples: list[dict], arrays: tuple[str, ...]) -> tuple[list[torch.Tensor], list, list]:
    """Stack what stacks, and list words and metadata."""
    stacked = [torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in arrays]
    return (
        stacked,
        [sample.get("text", sample.get("txt")) for sample in samples],
        [s.get("meta", s.get("json")) for s in samples],
    )


def ours(folder: Path, fields: tuple[str, ...], workers: int, batches: int) -> Iterable:
    """`batches` of an endless order that shows every sample once an epoch."""
    dataset = ShardDataset(folder)
    order = StepSampler(length=len(dataset), batch_size=BATCH, steps=batches, seed=0)
    return DataLoader(dataset, batch_sampler=order, collate_fn=partial(collate, arrays=fields), num_workers=workers)


def plain(folder: Path, extensions: tuple[str, ...], workers: int, batches: int) -> Iterable:
    """One shard after the other, as they lie, again and again."""
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8").repeat()
    stream = stream.with_epoch(batches * BATCH // max(workers, 1))
    return DataLoader(stream, batch_size=BATCH, collate_fn=partial(collate, arrays=extensions), num_workers=workers)


def reading(loader: Iterable, batches: int) -> Callable[[], float]:
    """Make what reads all batches of a loader, and tells the CPU seconds."""

    def way() -> float:
        begin = cpu_seconds()
        assert sum(1 for _ in loader) == batches  # at whose end workers have ended too
        return cpu_seconds() - begin

    return way


def compare(what: str, ways: dict[str, Iterable], rounds: int, batches: int) -> None:
    """Let loaders take turns."""
    found = take_turns(what, {name: reading(loader, batches) for name, loader in ways.items()}, rounds)
    rates = (f"{name} {batches * BATCH / statistics.median(seconds):,.0f}" for name, seconds in found.items())
    print(f"  samples a second: {', '.join(rates)}", flush=True)


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
    options, _ = settings(rounds=5, batches=12)
    rounds, batches = options.values()
    with tempfile.TemporaryDirectory() as temporary:
        scenes = Path(temporary, "scenes")
        pack_scenes(SceneConfig(), 2000, scenes, seed=0)
        blocks, members = write_ids(Path(temporary), 5_000)
        for workers in (0, 2):
            if workers:
                batches *= 10  # so that starting them is little
            how = {"workers": workers, "batches": batches}
            pictures = {
                "ours": ours(scenes, ("image", "target"), **how),
                "webdataset": plain(scenes, ("png", "target.png"), **how),
            }
            compare(f"pictures of 64 px, {workers} workers", pictures, rounds, batches)
            ids = {
                "ours in blocks": ours(blocks, ("ids",), **how),
                "ours in members": ours(members, ("ids",), **how),
                "webdataset": plain(members, ("ids.npy",), **how),
            }
            compare(f"64 ids, {workers} workers", ids, rounds, batches)


if __name__ == "__main__":
    main()
