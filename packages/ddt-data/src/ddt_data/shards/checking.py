"""Look through a shard folder: what it holds, what is broken, what occurs twice."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddt_data.readers.records import reason
from ddt_data.readers.tars import DAMAGE
from ddt_data.shards.block_writing import Sample, checked_ids
from ddt_data.shards.building import Progress
from ddt_data.shards.folder import check_shard, open_shard
from ddt_data.shards.images import file_format, save_image
from ddt_data.shards.index import INDEX, index_of, open_index
from ddt_data.shards.manifest import MANIFEST, Manifest
from ddt_data.shards.meta import misfits
from ddt_data.shards.remote import RemoteFolder, open_folder
from ddt_data.shards.sheet import contact_sheet

UNREADABLE = (*DAMAGE, AttributeError)  # what damaged shards raise


@dataclass
class Findings:
    """What `check_folder` found.

    Example:
        >>> Findings(samples=2, caption_lengths=[5, 11]).captions
        (5, 8, 11)
    """

    samples: int = 0  # that could be read
    fields: Counter[str] = field(default_factory=Counter)  # how many samples have each
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of pictures
    questions: int = 0
    caption_lengths: list[int] = field(default_factory=list)  # in characters
    broken: list[dict] = field(default_factory=list)  # {"name", "why"}
    unusable: list[dict] = field(default_factory=list)  # the same of what can be read, and training would trip over
    repeated_keys: list[str] = field(default_factory=list)
    repeated_pictures: list[list[str]] = field(default_factory=list)  # keys of the samples that show the same
    repeated_captions: int = 0  # samples whose caption an earlier one has

    @property
    def captions(self) -> tuple[int, int, int]:
        """Length of the shortest, middle and longest caption in characters; zeros without captions."""
        ordered = sorted(self.caption_lengths) or [0]
        return ordered[0], int(np.median(ordered)), ordered[-1]


def check_folder(folder: str | Path, sheet: str | Path | None = None, progress: Progress | None = None) -> Findings:
    """Read every sample of a shard folder; what is damaged is among the findings and does not stop the check.

    Args:
        sheet: Picture to write, .png, .jpg or .webp: 100 pictures, evenly spaced, with their captions.
        progress: Called with (samples read, of).

    Raises:
        FileNotFoundError: If the folder is missing, empty or unfinished.
        ValueError: If the manifest cannot be read, or the sheet has another ending.

    Example:
        >>> import tempfile
        >>> from ddt_data import pack_text
        >>> folder = Path(tempfile.mkdtemp(), "shards")
        >>> _ = pack_text(["a fox", "a bell", "a fox"], folder)
        >>> found = check_folder(folder)
        >>> found.samples, found.repeated_captions, found.broken
        (3, 1, [])
    """
    folder, manifest = open_folder(folder)
    if sheet:
        file_format(sheet)
    found, keys = Findings(), Counter()
    texts: set[str] = set()
    pictures: dict[bytes, list[str]] = defaultdict(list)
    wanted = set(np.linspace(0, manifest.samples - 1, min(100, manifest.samples), dtype=int).tolist())
    shown: list[Sample] = []
    for number, sample in _samples(folder, manifest, found.broken):
        keys[sample["key"]] += 1
        _note(found, sample, texts, pictures)
        found.unusable += ({"name": f"sample {sample['key']}", "why": why} for why in _unusable(sample, manifest))
        if number in wanted and "image" in sample:
            shown.append(sample)
        if progress:
            progress(number + 1, manifest.samples)
    if isinstance(folder, Path) and not _index_holds(folder, manifest, found.broken):
        why = "is not the index of these tars; delete it, which makes opening slower, or copy the folder again"
        found.broken.append({"name": INDEX, "why": why})
    found.repeated_keys = [key for key, times in keys.items() if times > 1]
    found.repeated_pictures = [same for same in pictures.values() if len(same) > 1]
    if sheet and shown:
        drawn = contact_sheet([sample["image"] for sample in shown], [sample.get("text", "") for sample in shown])
        save_image(drawn, sheet)
    return found


def _samples(folder: Path | RemoteFolder, manifest: Manifest, broken: list[dict]) -> Iterator[tuple[int, Sample]]:
    """Yield number and content of each sample that can be read, and note the others."""
    first = 0  # number of a shard's first sample
    for shard in manifest.shards:
        try:
            check_shard(folder, shard)
            opened = open_shard(folder / shard.name, manifest)
            if len(opened) != shard.samples:
                raise ValueError(f"holds {len(opened)} samples, the manifest says {shard.samples}")
        except UNREADABLE as error:
            broken.append({"name": shard.name, "why": reason(error)})
        else:
            for index in range(len(opened)):
                try:
                    sample = opened[index]
                except UNREADABLE as error:
                    broken.append({"name": f"{shard.name}, sample {index}", "why": reason(error)})
                else:
                    yield first + index, sample
        first += shard.samples
    if first != manifest.samples:
        broken.append({"name": MANIFEST, "why": f"says {manifest.samples} samples, its shards hold {first}"})


def _index_holds(folder: Path, manifest: Manifest, broken: list[dict]) -> bool:
    """Whether the index says what the headers of the tars say; of tars that are broken there is nothing to say."""
    damaged = {shard.name for shard in manifest.shards} & {entry["name"] for entry in broken}
    if damaged or not os.path.lexists(folder / INDEX):
        return True
    index = open_index(folder, manifest.shards)
    return index is not None and np.array_equal(index.numbers, index_of(folder, manifest.shards))


def _unusable(sample: Sample, manifest: Manifest) -> Iterator[str]:
    """Yield what training would trip over in a sample that can be read."""
    remedy = "make the shards again"
    for why in misfits(sample.get("meta", {})).values():
        yield f"its {why}; {remedy}"
    if not sample.get("text", "text").strip():
        yield f"its text is empty; {remedy}"
    if not {"image", "ids", "latents", "text"} & set(sample):
        yield f"it has neither picture, ids nor text; {remedy}"
    if {"target", "target_ids"} & set(sample) and "edit" not in sample.get("meta", {}):
        yield f"it has a target and no edit; {remedy}"
    size = manifest.image_size
    shape = (size, size) if isinstance(size, int) else size
    for name in ("image", "target"):
        if shape and name in sample and (found := sample[name].shape[1::-1]) != shape:
            yield f"its {name} is {found[0]} x {found[1]}, the manifest says {shape[0]} x {shape[1]}; {remedy}"
    if manifest.tokenizer and "ids" not in sample:
        yield f"it has no ids; {remedy}"
    for name in ("ids", "target_ids"):
        if name in sample:
            try:
                checked_ids(sample["key"], sample[name], manifest.tokenizer)
            except (ValueError, TypeError) as error:
                yield f"{reason(error)}; {remedy}"


def _note(found: Findings, sample: Sample, texts: set[str], pictures: dict[bytes, list[str]]) -> None:
    found.samples += 1
    found.fields.update(name for name in sample if name != "key")
    found.questions += len(sample.get("meta", {}).get("questions", ()))
    if "image" in sample:
        height, width = sample["image"].shape[:2]
        found.shapes[width, height] += 1
        pictures[hashlib.sha256(sample["image"]).digest()].append(sample["key"])
    if "text" in sample:
        found.caption_lengths.append(len(sample["text"]))
        found.repeated_captions += sample["text"] in texts
        texts.add(sample["text"])
