"""Aspect-ratio buckets: pictures keep about their shape, and each batch is of one shape."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ddt_data.readers.records import Record, Refused, bytes_or_path
from ddt_data.shards.building import NothingLeftError, Progress
from ddt_data.shards.claim import writable
from ddt_data.shards.folder import ShardDataset
from ddt_data.shards.lock import locked
from ddt_data.shards.manifest import MANIFEST, Manifest
from ddt_data.shards.mixture import Mixture
from ddt_data.shards.pack_pictures import PackConfig, pack_records, record_identity
from ddt_data.shards.pictures import image_shape

Shape = tuple[int, int]  # (width, height)
NOTE = ".task"  # file in a finished bucket: hash of the records and settings that it was made of


def pack_buckets(
    records: Iterable[Record | Refused],
    out: str | Path,
    config: PackConfig,
    step: int = 16,
    source: str = "",
    licence: str = "",
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Pack pictures into a shard folder for each bucket, `<width>x<height>`, that has any.

    Finished ones stay when a run that was stopped is started again, as long as they are of the same pictures.

    Args:
        out: Folder of shard folders to make.
        config: Settings; buckets have about as many pixels as a square of its `image_size`.
        step: See `aspect_buckets`.
        progress: Called with (samples done in a bucket, of).

    Raises:
        FileExistsError: If a folder holds something else, such as a bucket of other pictures or settings.
        OSError: If nothing can be written there, or another command is at it.
        ValueError: If not one record can be used, or (strict) one cannot.

    Example:
        >>> import tempfile
        >>> from ddt_data import encode_image
        >>> pictures = [np.zeros((20, 36, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)]
        >>> records = [Record(str(i), image=encode_image(picture)) for i, picture in enumerate(pictures)]
        >>> sorted(pack_buckets(records, Path(tempfile.mkdtemp(), "out"), PackConfig(image_size=64)))
        ['64x64', '80x48']
    """
    out, manifests, lost = Path(out), {}, ()
    with writable(out):
        sorted_out = split_by_shape(records, config.image_size, step)
        buckets = {
            out / f"{width}x{height}": (found, replace(config, image_size=(width, height)))
            for (width, height), found in sorted_out.items()
            if found
        }
        tasks = {folder: _task(*bucket) for folder, bucket in buckets.items()}
        for folder in finished_buckets(out):
            if tasks.get(folder) not in _noted(folder):
                raise FileExistsError(f"{folder} holds other pictures, or in another way; choose another folder")
        for folder, (found, shaped) in buckets.items():
            if (folder / MANIFEST).is_file():
                with locked(folder):  # a kill right after the bucket was put in place leaves the file of its lock
                    manifests[folder.name] = Manifest.read(folder)
                continue
            try:
                _note(folder).write_text(tasks[folder], encoding="utf-8")
                manifests[folder.name] = pack_records(found, folder, shaped, source, licence, progress=progress)
            except NothingLeftError as error:  # nothing but pictures that cannot be read: another bucket names them
                lost += error.skipped
                _note(folder).unlink()
        if not manifests:
            raise NothingLeftError(out, lost)
        if lost:
            name, manifest = next(iter(manifests.items()))
            named = tuple(entry for entry in lost if entry not in manifest.skipped)
            manifests[name] = replace(manifest, skipped=manifest.skipped + named)
            manifests[name].write(out / name)
        for name in manifests:
            if _note(out / name).is_file():
                os.replace(_note(out / name), out / name / NOTE)
    return manifests


def _note(folder: Path) -> Path:
    """Where it stands what a bucket is made of while buckets are made; afterwards it is in the bucket, as `NOTE`."""
    return folder.with_name(f".{folder.name}{NOTE}")


def _noted(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in (_note(folder), folder / NOTE) if path.is_file()]


def _task(found: list, config: PackConfig) -> str:
    identities = [record_identity(number, record) for number, record in enumerate(found)]
    settings = {name: value for name, value in asdict(config).items() if name != "strict"}
    return hashlib.sha256(json.dumps([settings, identities], default=str).encode()).hexdigest()


def finished_buckets(folder: Path) -> list[Path]:
    """Return the shard folders of a folder of buckets, sorted."""
    return sorted(
        path.parent for path in folder.glob(f"[0-9]*x*/{MANIFEST}")
    )  # not what stands in for one: .32x32.part


def open_buckets(folder: str | Path) -> Mixture:
    """Open the buckets of a folder as one dataset of which `ShardStream` takes each batch from one bucket.

    Raises:
        FileNotFoundError: If there is no bucket.
    """
    folders = finished_buckets(Path(folder))
    if not folders:
        raise FileNotFoundError(f"{folder} holds no buckets; make them with pack_buckets, or ddt data pack --buckets")
    sources = [ShardDataset(path) for path in folders]
    return Mixture(sources, [len(source) for source in sources], whole_batches=True)


def aspect_buckets(image_size: int, step: int = 16, max_ratio: float = 2.0) -> tuple[tuple[int, int], ...]:
    """List the shapes (width, height) of about `image_size` squared pixels whose sides are multiples of `step`.

    Args:
        image_size: Side of the square bucket, a multiple of `step`.
        step: Sides are multiples of it: patch size times the downscale of the latents.
        max_ratio: Longest side over shortest at most.

    Returns:
        Shapes from the most upright to the widest, the square among them; each keeps within one step of the area.

    Raises:
        ValueError: If `image_size` is no multiple of `step`, or `max_ratio` is below 1.

    Example:
        >>> aspect_buckets(64)
        ((48, 80), (64, 64), (80, 48))
    """
    if step < 1 or image_size < step or image_size % step:
        raise ValueError(f"image_size ({image_size}) must be a multiple of step ({step})")
    if max_ratio < 1:
        raise ValueError(f"max_ratio ({max_ratio}) must be at least 1")
    upright = [(width, round(image_size * image_size / width / step) * step) for width in range(step, image_size, step)]
    upright = [(width, height) for width, height in upright if height <= max_ratio * width]
    return (*upright, (image_size, image_size), *((height, width) for width, height in reversed(upright)))


def nearest_bucket(width: int, height: int, buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Choose the bucket whose aspect ratio is nearest to the picture's, so that least is cut off.

    Example:
        >>> nearest_bucket(1920, 1080, aspect_buckets(64))
        (80, 48)
    """
    ratio = np.log(width / height)
    return min(buckets, key=lambda bucket: (abs(np.log(bucket[0] / bucket[1]) - ratio), bucket))


def split_by_shape(records: Iterable[Record | Refused], image_size: int, step: int = 16) -> dict[tuple[int, int], list]:
    """Sort records into aspect-ratio buckets by the shape of their picture.

    What cannot be read goes with the square, or, if there is none, with the bucket that holds most.

    Returns:
        Records by (width, height), for one shard folder each: batches of one shape then come from one folder.

    Example:
        >>> import numpy as np
        >>> from ddt_data import encode_image
        >>> wide = Record("wide", image=encode_image(np.zeros((20, 36, 3), np.uint8)))
        >>> {shape: len(found) for shape, found in split_by_shape([wide], image_size=64).items() if found}
        {(80, 48): 1}
    """
    buckets = aspect_buckets(image_size, step)
    found: dict[tuple[int, int], list] = {bucket: [] for bucket in buckets}
    square, readable = (image_size, image_size), Counter()
    for record in records:
        shape = square
        if isinstance(record, Record) and record.image is not None:
            # What is wrong is named when it is packed.
            with suppress(ValueError, OSError), warnings.catch_warnings(action="ignore"):
                shape = nearest_bucket(*image_shape(bytes_or_path(record.image)), buckets)
                readable[shape] += 1
        found[shape].append(record)
    if readable and not readable[square]:
        most = max(readable, key=lambda shape: (readable[shape], shape))
        found[most] += found[square]
        found[square] = []
    return found
