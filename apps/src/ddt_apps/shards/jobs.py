"""What `ddt tokenize` and `ddt data latents` share: shards made of shards, by any number of commands at once."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddt_apps.run import ranks
from ddt_apps.run.devices import pick_device
from ddt_apps.run.progress import StageProgress, clock
from ddt_data import Manifest, Plan, Shard, build, open_shard
from ddt_data.readers.records import reason
from ddt_data.shards.block_writing import Sample
from ddt_data.shards.claim import part_of
from ddt_data.shards.folder import check_shard
from ddt_data.shards.manifest import BLOCKS
from ddt_data.shards.notes import list_notes, status_of
from ddt_data.shards.remote import RemoteFolder, open_folder


def shard_tasks(source: Manifest, identity: list) -> Iterator[tuple[Any, Shard]]:
    """Name the work of a plan, shard by shard: what decides its result, and the shard."""
    for shard in source.shards:
        yield [*identity, shard.sha256], shard


def made_of(source: Manifest, what: str, **more: Any) -> Manifest:
    """Return what a folder says of itself that is made of another one's shards, and of which."""
    shards = hashlib.sha256("".join(shard.sha256 for shard in source.shards).encode()).hexdigest()[:12]
    said = f"{what} of {source.source}, shards {shards}"
    return Manifest(0, (), said, licence=source.licence, parts=source.parts, format=BLOCKS, **more)


def readable(folder: Path | RemoteFolder, source: Manifest, shard: Shard, rejected: list[dict]) -> Iterator[Sample]:
    """Yield the samples of a shard; of those that cannot be used, {"name", "why"} goes to `rejected`.

    Raises:
        FileNotFoundError: If the shard is gone.
        ValueError: If it was changed or damaged.
    """
    check_shard(folder, shard)
    opened = open_shard(path := folder / shard.name, source)
    for index in range(len(opened)):
        try:
            sample = opened[index]
            _check_sizes(sample, source.image_size)
        except ValueError as error:
            why = reason(str(error).replace(str(path), shard.name))
            rejected.append({"name": f"{shard.name}, sample {index}", "why": why})
        else:
            yield sample


def _check_sizes(sample: Sample, size: int | tuple[int, int] | None) -> None:
    wanted = (size, size) if isinstance(size, int) else size
    for name in ("image", "target"):
        if wanted and name in sample and (found := sample[name].shape[1::-1]) != wanted:
            raise ValueError(
                f"{sample['key']}: its {name} has {found[0]} x {found[1]} px, not {wanted[0]} x {wanted[1]}"
            )


def build_together(stage: str, out: Path, plan: Plan, total: int, workers: int) -> Manifest:
    """Carry a plan of `total` pictures out, as one of the commands that do; return when the folder is there.

    One that comes when the others have finished finds the folder and is content with it, if it says that it is the
    plan's.

    Raises:
        FileExistsError: If `out` holds something else.
    """
    before = sum(note.samples for note in list_notes(part_of(out)).values())
    with StageProgress(stage, total, before, unit="pictures") as progress:
        try:
            made = build(out, plan, workers, progress=lambda done, of: progress.update(done))
        except FileExistsError:
            if (made := _made_before(out, plan)) is None:
                raise
        progress.total = made.samples  # some may have been rejected
        progress.update(made.samples)
        return made


def _made_before(out: Path, plan: Plan) -> Manifest | None:
    with suppress(FileNotFoundError, ValueError):  # what is there is no shard folder
        made = Manifest.read(out)
        if replace(made, samples=0, shards=(), skipped=()) == plan.manifest:
            return made
    return None


def how_far(stage: str, shards: str, out: Path) -> str:
    """Return a line on how far a folder is that is made of `shards`: done, left, by how many jobs, at which rate.

    Raises:
        OSError: If the shards are missing, or cannot be reached.
        ValueError: If their manifest is none.

    Example:
        >>> import tempfile
        >>> from ddt_data import pack_text
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = pack_text(["a fox"] * 50, folder / "foxes")
        >>> how_far("tokenize", str(folder / "foxes"), folder / "ids")
        'tokenize 0/50 pictures, 50 left, nobody is at it; run the same line without --status'
    """
    status, total = status_of(out), open_folder(shards)[1].samples
    left = total - status.samples - status.skipped
    said = [f"{stage} {status.samples}/{total} pictures"]
    said += [f"{status.skipped} rejected"] if status.skipped else []
    if status.complete:
        return ", ".join([*said, f"finished: {out}"])
    said.append(f"{left} left")
    if not status.jobs:
        return ", ".join([*said, "nobody is at it"]) + "; run the same line without --status"
    said.append(f"{status.jobs} job{'s' if status.jobs > 1 else ''} at it")
    said += [f"{status.rate:.3g} pictures/s, ETA {clock(left / status.rate)}"] if status.rate else ["ETA -"]
    return ", ".join(said)


def device_of_worker(workers: int) -> torch.device:
    """Take this rank's device, and this process's share of the threads."""
    device = pick_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(ranks.rank_here())
    if workers > 1:
        torch.set_num_threads(max(1, os.cpu_count() // workers))
    return device
